"""Commands that train models: the demos, or one anew."""

from __future__ import annotations

import argparse
import sys

from serving.cli.terminal import say
from serving.settings import Settings


def train(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Train the demo models, and import the records of the demo where no Supabase is set up."""
    from examples.train import train_all
    from serving.cli.records import import_demo

    for model in train_all(settings.model_dir):
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in model.manifest.metrics.items())
        say(f"trained {model.name} version {model.version}: {metrics} (held out)")
    if not settings.supabase_url:  # nobody's project is filled with a demo unasked: `forkserve entities demo`
        import_demo(settings)
    return 0


def retrain(arguments: argparse.Namespace, settings: Settings) -> int:
    """Train a model anew and make it live if it is no worse than what is; waits for it. For cron."""
    from registry.store.directory import find_model
    from registry.training.script import live_manifest
    from serving.app import build_trainer_alone
    from serving.errors import ServingError
    from serving.master import prefork
    from serving.training.job import train_once

    live = live_manifest(find_model(settings.model_dir, arguments.model))
    try:
        store, runner = build_trainer_alone(settings)
        prefork.check_single_thread()
        job, result = train_once(store, runner, live)
    except ServingError as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    if result is None:
        say(
            f"forkserve: {live.name}: job {job.id} is {job.state}{f': {job.error}' if job.error else ''}",
            file=sys.stderr,
        )
        return 1
    for reason in result.reasons:
        say(f"forkserve: {live.name}: version {result.version} is refused: {reason}", file=sys.stderr)
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
    if result.promoted:
        say(f"{live.name}: version {result.version} is live, {metrics}; the previous one is {result.live}")
        say("a service that runs takes it over when it reloads")
    return 0 if result.promoted else 1
