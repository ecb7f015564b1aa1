"""The command line: all commands of `forkserve`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

from serving.cli.check import check
from serving.cli.command import say
from serving.cli.inspection import inspect
from serving.cli.keys import keys
from serving.cli.load_test import load_test
from serving.cli.models import add, card, describe, explain, models, remove, retrain, rollback, train
from serving.cli.predictions import predictions
from serving.cli.records import entities
from serving.cli.rollout import canary, promote, replay, shadow
from serving.cli.serve import schedules, serve, token, worker
from serving.cli.verify import verify

COMMANDS = (
    serve,
    worker,
    schedules,
    token,
    models,
    inspect,
    add,
    describe,
    explain,
    card,
    promote,
    rollback,
    canary,
    shadow,
    replay,
    remove,
    retrain,
    train,
    check,
    verify,
    load_test,
    entities,
    predictions,
    keys,
)


class _HelpfulParser(argparse.ArgumentParser):
    """Says what may have been meant, which argparse does from Python 3.14 on only, and only for commands."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            options = list(map(str, action.choices))
            meant = did_you_mean(str(value), options) or f"; choose one of {', '.join(options)}"
            raise argparse.ArgumentError(action, f"unknown: {value}{meant}")

    def error(self, message: str) -> NoReturn:
        """Exit with usage and message."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            known = [name for action in self._actions for name in action.option_strings]
            message += did_you_mean(unknown.partition(" ")[0].partition("=")[0], known)
        super().error(message)


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for: no other command waits for that."""

    def __call__(self, parser: argparse.ArgumentParser, *_rest: Any) -> NoReturn:
        import importlib.metadata

        say(f"forkserve {importlib.metadata.version('forkserve')}")
        parser.exit()


def did_you_mean(text: str, names: Iterable[str]) -> str:
    """A question after the name that resembles `text`; empty if none does."""
    close = difflib.get_close_matches(text, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


class _CommandParser(_HelpfulParser):
    """Takes options before, between and after positional arguments, also where one of these may be left out.

    Plain argparse takes an optional positional argument to be left out as soon as it meets an option.
    """

    _is_intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what `argparse` hands over; `parse_known_intermixed_args` comes back here for each half."""
        if self._is_intermixing:
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False
        if unknown:  # here the options are known that may have been meant
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def parser() -> argparse.ArgumentParser:
    """Parses a command line; `run` of the result is the function of its command, None without a command."""
    top = _HelpfulParser(prog="forkserve", description="Serve scikit-learn models from workers that share them.")
    top.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version of forkserve")
    top.set_defaults(run=None)
    commands = top.add_subparsers(metavar="command", parser_class=_CommandParser)
    for command in COMMANDS:
        text = command.run.__doc__
        own = commands.add_parser(command.run.__name__.replace("_", "-"), help=text, description=text)
        own.set_defaults(run=command.run)
        for names, options in command.arguments:
            own.add_argument(*names, **options)
    return top
