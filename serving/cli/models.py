"""Commands on models and their versions: list, add, explain, promote, roll back, train and retrain."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from serving.cli.command import argument, command, fail, kind_of_entities, repeated, say, write_text
from serving.cli.features import COLUMN_ARGUMENTS, MARGINS, feature_options, feature_table
from serving.cli.inspection import READING_ARGUMENTS
from serving.settings import Settings

if TYPE_CHECKING:
    from registry.model import LoadedModel
    from registry.training.metrics import Better

MODEL = argument("model", help="name of the model")


@command()
def models(_arguments: argparse.Namespace, settings: Settings) -> int:
    """List the versions in the model directory, without loading any."""
    from registry.store.listing import list_versions

    for one in list_versions(settings.model_dir):
        live = "live" if one.live else ""
        kind = f"broken: {one.fault}" if one.fault else f"{one.task:18} {one.estimator:48} {_listed(one.metrics)}"
        say(f"{one.model:24} {one.version:10} {live:5} {kind}")
    return 0


@command(
    argument(
        "artefact", type=Path, help="file with a fitted model, or directory of MLflow; loading a pickle runs its code"
    ),
    argument("--name", required=True, help="name of the model"),
    argument(
        "--data", type=Path, help="CSV of the model's input, one column per feature; MLflow models may bring rows"
    ),
    argument("--version", help="default: the number after the newest version"),
    argument("--target", help="column of the CSV that the model predicts; its metrics are measured"),
    argument("--targets", help="names of several outputs, separated by commas; columns of the CSV, if it has them"),
    argument(
        "--calibrate", type=Path, help="CSV of rows not used for fitting, with the target; for intervals and sets"
    ),
    argument("--labels", help="names of the classes, separated by commas, in the order of classes_"),
    *READING_ARGUMENTS,
    repeated("--metric", "metric of your own, f(y_true, y_pred) -> float, higher is better", metavar="MODULE:FUNCTION"),
    repeated("--loss", "metric of your own, lower is better", metavar="MODULE:FUNCTION"),
    argument("--train", type=Path, help="train.py that retrains the model; a retraining runs its code"),
    argument("--entities", action="store_true", help="also predict for the records of entities"),
    argument("--kind", type=kind_of_entities, help="predict for entities of this kind only, such as house"),
    argument("--source", default="", help="origin and licence of the data"),
    repeated("--group", "features whose contributions explanations show as one sum", metavar="NAME=FEATURE,FEATURE"),
    repeated("--label", "a feature's or group's label for people", metavar="FEATURE=TEXT"),
    *COLUMN_ARGUMENTS,
    argument("--reload", action="store_true", help="have the service that runs here serve it, and wait until it does"),
)
def add(arguments: argparse.Namespace, settings: Settings) -> int:
    """Add a version, from a model file and a CSV table."""
    from serving.cli.addition import add_apart, await_served
    from serving.cli.client import RemoteFault

    write = partial(_write_version, arguments, settings.reload_timeout_seconds)
    directory = add_apart(write, arguments.name, arguments.version, settings)
    if arguments.reload:
        try:
            say(await_served(settings, arguments.name, directory.name))
        except RemoteFault as error:
            return fail(error)
    else:
        say(_to_be_served(directory, settings))
    return 0


def _write_version(arguments: argparse.Namespace, seconds: float, version: str, root: Path) -> None:
    """Write a version below `root`, and say what it is; reading its artefact may take `seconds`. Raises CannotAdd."""
    from registry.conformal import largest_coverage
    from registry.store.add import add_trained
    from registry.store.reading import read_sample, read_trained, with_imports_of
    from registry.store.tables import read_table
    from registry.training.script import Trained, read_script, record_script, write_script
    from serving.process.apart import time_limit

    script = read_script(arguments.train) if arguments.train else None
    metrics: dict[str, Better] = dict.fromkeys(arguments.metric, "higher") | dict.fromkeys(arguments.loss, "lower")
    with time_limit(seconds):
        estimator, artefact = read_trained(
            arguments.artefact,
            force_version=arguments.force_version,
            code=arguments.code,
            names=metrics,
            trusted=arguments.trust,
        )
    if script is not None:
        artefact = with_imports_of(arguments.train, script, artefact, arguments.code)
    features, targets = feature_options(arguments), arguments.targets.split(",") if arguments.targets else []
    columns = targets if arguments.target is None else [*targets, arguments.target]
    trained = Trained(
        estimator=estimator,
        artefact=artefact,
        metrics=metrics,
        sample=read_sample(arguments.data, artefact, estimator, features, columns),
        target=arguments.target,
        targets=targets,
        calibration=read_table(arguments.calibrate, estimator, features, columns) if arguments.calibrate else None,
        labels=arguments.labels.split(",") if arguments.labels else (),
        margin=MARGINS[arguments.bounds],
        features=features,
        source=arguments.source,
        groups={name: members.split(",") for name, members in _pairs("--group", arguments.group)},
        feature_labels=dict(_pairs("--label", arguments.label)),
    )
    model = add_trained(
        root,
        arguments.name,
        trained,
        version=version,
        training=None if script is None else record_script(script),
        entities=arguments.kind or arguments.entities,
    )
    if script is not None:
        write_script(root / model.name, script)
    for line in feature_table(model.manifest.features):
        say(line)
    if artefact.code:
        say(f"own code: {', '.join(artefact.code)}")
    if model.python_steps:
        say(f"compiled, all but {', '.join(model.python_steps)}: the very bits of its estimator")
    else:
        say(f"not compiled: {model.reason}" if model.reason else "compiled: it answers the very bits of its estimator")
    say(_explained(model))
    if rows := len(model.manifest.conformal):
        say(f"calibrated with {rows} rows: a request may ask for a coverage of up to {largest_coverage(rows):g}")


@command(
    MODEL,
    argument("--row", required=True, type=Path, help="JSON file with one row: an object, or an array of values"),
    argument("--version", help="default: the live version"),
    argument("--top", type=int, help="show this many features, and the sum of the others"),
    argument(
        "--space", choices=("probability", "margin", "value"), help="the outputs to explain; default: the model's"
    ),
    argument("--plot", type=Path, help="draw a waterfall into this file: .svg, or .html with a table of its numbers"),
)
def explain(arguments: argparse.Namespace, settings: Settings) -> int:
    """Explain the prediction for one row, as JSON and as a picture."""
    if arguments.plot and arguments.plot.suffix not in (".svg", ".html"):
        return fail(f"{arguments.plot}: a picture is a file .svg or .html")
    from registry.errors import InvalidRows, InvalidSelection
    from registry.explain.explanation import Selection
    from registry.registry import load_one

    try:
        instance = json.loads(arguments.row.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return fail(f"{arguments.row}: {error}")
    model = load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    try:
        rows = model.schema.rows([instance])
    except InvalidRows as error:
        return fail(*(f"{arguments.row}: {fault.feature or 'the row'} {fault.reason}" for fault in error.faults))
    try:
        (explanation,) = model.explain(rows, Selection(top=arguments.top, space=arguments.space))
    except InvalidSelection as error:
        return fail(str(error))
    say(json.dumps(explanation, indent=1))
    if arguments.plot:
        from serving.pictures.explanation import MAX_BARS, waterfall, waterfall_page

        draw = waterfall if arguments.plot.suffix == ".svg" else waterfall_page
        instance = model.schema.sent(rows[0], instance)
        picture = draw(explanation, instance, f"{model.name} {model.version}", most=arguments.top or MAX_BARS)
        return write_text(arguments.plot, picture)
    return 0


@command(
    MODEL,
    argument("version", nargs="?", help="default: the live version"),
    argument("-o", "--output", type=Path, help="file to write it to; .json for JSON"),
)
def card(arguments: argparse.Namespace, settings: Settings) -> int:
    """Write the card of a model as Markdown: its data, features, quality, limits and history."""
    from registry.registry import load_one
    from registry.store.aliases import current
    from serving.http.card import make_card, markdown

    model = load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    directory = settings.model_dir / model.name
    made = make_card(model, current(directory), directory)
    is_json = arguments.output is not None and arguments.output.suffix == ".json"
    text = json.dumps(made, indent=1) + "\n" if is_json else markdown(made)
    if arguments.output is None:
        say(text, end="")
        return 0
    return write_text(arguments.output, text)


@command(
    MODEL,
    argument("version", nargs="?", help="default: the live version"),
    argument("data", type=Path, help="CSV of the model's input, one column per feature; others are ignored"),
)
def describe(arguments: argparse.Namespace, settings: Settings) -> int:
    """Record what is usual in a version's data, from a CSV table: for versions that do not say, and other data."""
    from registry.registry import load_one
    from registry.store.description import describe_version
    from registry.store.tables import read_table

    model = load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    # as they are written: what looks like a number may be a code
    strings = [
        one.name
        for one in model.manifest.features
        if one.kind in ("text", "datetime") or any(isinstance(value, str) for value in one.categories)
    ]
    table = read_table(arguments.data, strings=strings)
    rows = describe_version(settings.model_dir, model, table)
    left_out = f"; {len(table) - rows} do not fit its features" if rows < len(table) else ""
    say(f"described {model.name} version {model.version} by {rows} rows{left_out}")
    say(taken_over(settings, "compare live rows with them"))
    return 0


@command(MODEL)
def rollback(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make the previous version live again, after loading and verifying it."""
    from registry.registry import load_one
    from registry.store import aliases
    from registry.store.directory import find_model

    directory = find_model(settings.model_dir, arguments.model)
    before = aliases.current(directory)
    if before.previous is not None:
        load_one(settings.model_dir, arguments.model, before.previous, settings.load_options)
    after = aliases.rollback(directory)
    say(f"{arguments.model}: version {after.live} is live, the previous one is {after.previous or 'none'}")
    say(taken_over(settings))
    return 0


@command(
    MODEL,
    argument("version", nargs="?", help="default: all versions, and so the model"),
    argument("--force", action="store_true", help="also the live version of several; the previous one becomes live"),
)
def remove(arguments: argparse.Namespace, settings: Settings) -> int:
    """Remove a version or a model from the model directory; a running service takes it out of service."""
    from registry.store import aliases
    from registry.store.directory import directories, find_model

    directory, version = find_model(settings.model_dir, arguments.model), arguments.version
    if version is None:
        count = len(directories(directory))
        aliases.remove_model(directory)
        said = f"removed {arguments.model} with {count} version{'s' * (count > 1)}"
    else:
        after = aliases.remove(directory, version, force=arguments.force)
        then = f"version {after.live} is live" if after else "no version is left" * (not directories(directory))
        said = f"removed {arguments.model} version {version}{f'; {then}' * bool(then)}"
    say(said)
    if any(map(directories, directories(settings.model_dir))):
        say(taken_over(settings, "follow"))
    else:
        say("no model is left: a running service goes on with what it has loaded, and would not start again")
    return 0


def _to_be_served(directory: Path, settings: Settings) -> str:
    """What is to be done to have a version served that was just added."""
    from registry.errors import VersionRefused
    from registry.store.aliases import current

    name, version = directory.parent.name, directory.name
    try:
        live = current(directory.parent).live
    except VersionRefused as error:
        return f"it is not served: {error}; make a version live with `forkserve promote {name} {version}`"
    if live == version:
        return taken_over(settings)
    return f"{taken_over(settings)}; version {live} stays live until `forkserve promote {name} {version}`"


def _explained(model: LoadedModel) -> str:
    """A sentence on how a model is explained, or why it is not."""
    explainer = model.explainer
    if explainer is None:
        return f"not explained: {model.not_explained}"
    where = "by jobs only, because a row takes too long" if explainer.jobs_only else "within a request"
    others = f"; on request also {' and '.join(model.other_explainers)}" if model.other_explainers else ""
    return f"explained {where}: {explainer.method}, {explainer.space}{others}"


def _pairs(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """What stands before and after the first `=`. Raises CannotAdd."""
    from registry.errors import CannotAdd

    if wrong := [one for one in given if "=" not in one]:
        raise CannotAdd(f"{option} {wrong[0]}: write a name, =, and what it means")
    return [(name, meaning) for name, _, meaning in (one.partition("=") for one in given)]


def taken_over(settings: Settings, act: str = "serve it") -> str:
    """A sentence: when a running service will act on the change that was just made in the model directory."""
    if settings.watch_models:
        return f"a running service will {act} within a few seconds"
    return f"WATCH_MODELS is false: a running service will {act} after a reload (POST /api/admin/models:reload)"


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
