"""Commands that try a version beside the live one: on a share of the requests, on spare time, on logged requests."""

from __future__ import annotations

import argparse
from pathlib import Path

from serving.cli.command import argument, command, fail, say
from serving.cli.models import MODEL, taken_over
from serving.settings import Settings

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


def _directory(arguments: argparse.Namespace, settings: Settings) -> Path:
    from registry.store.directory import find_model

    return find_model(settings.model_dir, arguments.model)


def _verified(arguments: argparse.Namespace, settings: Settings) -> Path:
    """The directory of a model whose version is loaded and verified now. Raises RegistryError."""
    from registry.registry import load_one

    load_one(settings.model_dir, arguments.model, arguments.version, settings.load_options)
    return _directory(arguments, settings)
