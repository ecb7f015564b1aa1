"""Commands that try a version beside the live one: on a share of the requests, on spare time, on logged requests."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from serving.cli.command import argument, command, fail, moment, number, say
from serving.cli.models import MODEL, taken_over
from serving.errors import ServingError
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.monitoring.agreement import Agreement

OFF = "off"

TRIED = argument("version", help="version to try, or off")


def percent(text: str) -> float:
    """The type of an argument: a share such as 10% or 0.5%."""
    number = float(text.removesuffix("%"))
    if not 0 <= number <= 100 or not text.endswith("%"):
        raise argparse.ArgumentTypeError("must be a share from 0% to 100%, such as 10%")
    return number


@command(MODEL, TRIED, argument("percent", nargs="?", type=percent, help="share of the requests, such as 10%%"))
def canary(arguments: argparse.Namespace, settings: Settings) -> int:
    """Have a version answer a share of the requests that name none; it goes back by itself if it does worse."""
    from registry.store import aliases

    if arguments.version != OFF and arguments.percent is None:
        return fail("say which share of the requests it answers, such as 10%")
    if arguments.version == OFF or not arguments.percent:
        aliases.end_canary(_directory(arguments, settings))
        said = f"{arguments.model} has no canary"
    else:
        directory = _verified(arguments, settings)
        after = aliases.begin_canary(directory, arguments.version, arguments.percent)
        share = f"version {arguments.version} answers {arguments.percent:g}% of the requests"
        said = f"{arguments.model}: {share}, version {after.live} the others"
    say(said)
    say(taken_over(settings, "follow"))
    return 0


@command(MODEL, TRIED)
def shadow(arguments: argparse.Namespace, settings: Settings) -> int:
    """Have a version predict beside the live one on spare time, and be compared with it; it answers nobody."""
    from registry.store import aliases

    if arguments.version == OFF:
        aliases.end_shadow(_directory(arguments, settings))
        say(f"{arguments.model} has no shadow")
    else:
        after = aliases.begin_shadow(_verified(arguments, settings), arguments.version)
        say(f"{arguments.model}: version {arguments.version} predicts beside version {after.live}")
    say(taken_over(settings, "follow"))
    return 0


REPLAYED = (
    argument("--last", type=number(int, 1), help="rows, the latest ones; default: 10000, or all of --since"),
    argument("--since", type=moment, help="only rows from this time on, such as 2026-01-31T12:00Z"),
    argument(
        "--tolerance",
        type=number(float, 0.0),
        help="numbers agree that differ by at most this share of what was answered; default: 0.01",
    ),
)


@command(MODEL, argument("version", help="version to try"), *REPLAYED)
def replay(arguments: argparse.Namespace, settings: Settings) -> int:
    """Have a version predict logged rows, and say how far it agrees with what was answered."""
    try:
        for line in findings_of(replayed(arguments, settings)):
            say(line)
    except ServingError as error:
        return fail(error)
    return 0


def replayed(arguments: argparse.Namespace, settings: Settings) -> Agreement:
    """The agreement of a version with logged predictions; runs the job in this process. Raises ServingError."""
    from registry.registry import Registry, load_one
    from registry.store.aliases import current
    from serving.app import build_replayer
    from serving.master import prefork
    from serving.monitoring.replay import ReplayParameters, replay_once

    candidate = load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    aliases = {candidate.name: current(settings.model_dir / candidate.name)}
    registry = Registry([candidate], aliases)
    shared, runner = build_replayer(settings, registry)
    prefork.check_single_thread()
    given = {name: getattr(arguments, name) for name in ("last", "since", "tolerance")}
    asked = ReplayParameters(**{name: value for name, value in given.items() if value is not None})
    return replay_once(shared.jobs, shared.predictions, runner, registry, candidate, asked)


def findings_of(found: Agreement) -> Iterator[str]:
    """What a replay has found, for a terminal."""
    shown = found.shown()
    yield f"{found.rows} rows, of which {found.agreed} agree: {found.share or 0:.2%}"
    if found.unfit or found.failed:
        yield f"the version does not take {found.unfit} rows, and fails on {found.failed}"
    for change in shown["changes"]:
        target = f"{change['target']} " if "target" in change else ""
        yield f"  {target}{change['from']} -> {change['to']}: {change['rows']}"
    if shown["mean_difference"] is not None:
        yield f"mean difference {shown['mean_difference']:.6g}, {shown['row_seconds'] * 1e3:.3g} ms a row"
    for one in found.largest:
        yield f"  {one.request_id} row {one.place}: {one.difference:.6g}, {one.before} -> {one.after}"


@command(
    MODEL,
    argument("version", help="version to make live"),
    argument(
        "--if-agrees", type=number(float, 0.0, 1.0), metavar="SHARE", help="only if this share of a replay agrees"
    ),
    *REPLAYED,
)
def promote(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make a version live, after loading and verifying it; a running service takes it over."""
    from registry.registry import load_one
    from registry.store import aliases

    if arguments.if_agrees is not None:
        try:
            found = replayed(arguments, settings)
        except ServingError as error:
            return fail(error)
        for line in findings_of(found):
            say(line)
        if (found.share or 0.0) < arguments.if_agrees:
            return fail(f"version {arguments.version} is not promoted: less than {arguments.if_agrees:.2%} agree")
    model = load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    after = aliases.promote(settings.model_dir / model.name, model.version)
    say(f"{model.name}: version {after.live} is live, the previous one is {after.previous or 'none'}")
    say(taken_over(settings))
    return 0


def _directory(arguments: argparse.Namespace, settings: Settings) -> Path:
    from registry.store.directory import find_model

    return find_model(settings.model_dir, arguments.model)


def _verified(arguments: argparse.Namespace, settings: Settings) -> Path:
    """The directory of a model whose version is loaded and verified now. Raises RegistryError."""
    from registry.registry import load_one

    load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    return _directory(arguments, settings)
