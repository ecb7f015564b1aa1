"""Commands about the versions of models: list, add, explain, say which is live."""

from __future__ import annotations

import argparse
import json
import sys

from serving.cli.terminal import say
from serving.settings import Settings

MARGINS = {"seen": 0.0, "wide": 1.0, "none": None}


def models(_arguments: argparse.Namespace, settings: Settings) -> int:
    """List what is in the model directory."""
    from registry.registry import load_registry

    registry = load_registry(settings.model_dir, settings.load_options, fallback=settings.model_fallback)
    for model in registry:
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in model.manifest.metrics.items())
        live = "live" if registry.aliases(model.name).live == model.version else ""
        kind = f"{model.manifest.task:18} {model.manifest.estimator:48}"
        say(f"{model.name:24} {model.version:10} {live:5} {kind} {metrics}")
    return 0


def add(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make a new version from a joblib file and a table."""
    from registry.store.add import add_trained, read_estimator, read_table
    from registry.training.script import Trained, read_script, record_script, write_script

    script = read_script(arguments.train) if arguments.train else None
    trained = Trained(
        estimator=read_estimator(arguments.artefact),
        sample=read_table(arguments.data),
        target=arguments.target,
        labels=arguments.labels.split(",") if arguments.labels else (),
        margin=MARGINS[arguments.bounds],
        source=arguments.source,
    )
    model = add_trained(
        settings.model_dir,
        arguments.name,
        trained,
        version=arguments.version,
        training=None if script is None else record_script(script),
        entities=arguments.entities,
    )
    if script is not None:
        write_script(settings.model_dir / model.name, script)
    say(f"added {model.name} version {model.version} in {settings.model_dir / model.name / model.version}")
    return 0


def explain(arguments: argparse.Namespace, settings: Settings) -> int:
    """Explain one row, as JSON and as a picture."""
    from registry.errors import InvalidRows
    from registry.explain.explanation import Selection
    from registry.registry import load_one

    try:
        instance = json.loads(arguments.row.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        say(f"forkserve: {arguments.row}: {error}", file=sys.stderr)
        return 1
    model = load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    try:
        rows = model.schema.rows([instance])
    except InvalidRows as error:
        for fault in error.faults:
            say(f"forkserve: {arguments.row}: {fault.feature or 'the row'} {fault.reason}", file=sys.stderr)
        return 1
    (explanation,) = model.explain(rows, Selection(top=arguments.top))
    say(json.dumps(explanation, indent=1))
    if arguments.plot:
        from registry.explain.explanation import draw_waterfall

        draw_waterfall(explanation, model.schema.instance(rows[0]), arguments.plot)
    return 0


def promote(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make a version live, once it has been loaded and verified; a service that runs takes it over when it reloads."""
    from registry.registry import load_one
    from registry.store import aliases

    model = load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    after = aliases.promote(settings.model_dir / model.name, model.version)
    say(f"{model.name}: version {after.live} is live, the previous one is {after.previous or 'none'}")
    return 0


def rollback(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make the previous version live again, once it has been loaded and verified."""
    from registry.registry import load_one
    from registry.store import aliases
    from registry.store.directory import find_model

    directory = find_model(settings.model_dir, arguments.model)
    before = aliases.current(directory)
    if before.previous is not None:
        load_one(settings.model_dir, arguments.model, before.previous, settings.load_options)
    after = aliases.rollback(directory)
    say(f"{arguments.model}: version {after.live} is live, the previous one is {after.previous or 'none'}")
    return 0
