"""Commands that train models: the demo models, or one that is there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from serving.cli.command import command, fail, say
from serving.cli.models import MODEL, taken_over
from serving.settings import Settings


@command()
def train(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Train the demo models, and import the demo records unless Supabase is set up."""
    from examples.train import train_all
    from serving.cli.records import import_demo

    for model in train_all(settings.model_dir):
        say(f"trained {model.name} version {model.version}: {_listed(model.manifest.metrics)} (held out)")
    if not settings.supabase_url:  # a project is filled with demo records by `forkserve entities demo` alone
        import_demo(settings)
    return 0


@command(MODEL)
def retrain(arguments: argparse.Namespace, settings: Settings) -> int:
    """Retrain a model, and make the new version live if it is no worse; waits for the result. For cron."""
    from registry.store.directory import find_model
    from registry.training.script import live_manifest
    from serving.app import build_trainer_alone
    from serving.master import prefork
    from serving.training.job import train_once

    live = live_manifest(find_model(settings.model_dir, arguments.model))
    store, runner = build_trainer_alone(settings)
    prefork.check_single_thread()
    job, result = train_once(store, runner, live)
    if result is None:
        return fail(f"{live.name}: job {job.id} is {job.state}{f': {job.error}' if job.error else ''}")
    if not result.promoted:
        return fail(*(f"{live.name}: version {result.version} is refused: {reason}" for reason in result.reasons))
    say(f"{live.name}: version {result.version} is live, {_listed(result.metrics)}; the previous one is {result.live}")
    say(taken_over(settings))
    return 0


def _listed(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
