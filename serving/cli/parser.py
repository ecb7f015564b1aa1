"""The command line: all commands of `forkserve`."""

from __future__ import annotations

import argparse
from typing import Any

from serving.cli.check import check
from serving.cli.inspection import inspect
from serving.cli.keys import keys
from serving.cli.load_test import load_test
from serving.cli.models import add, card, describe, explain, models, promote, remove, retrain, rollback, train
from serving.cli.predictions import predictions
from serving.cli.records import entities
from serving.cli.rollout import canary
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


class _CommandParser(argparse.ArgumentParser):
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
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False


def parser() -> argparse.ArgumentParser:
    """Parses a command line; `run` of the result is the function of its command."""
    top = argparse.ArgumentParser(
        prog="forkserve", description="Serve scikit-learn models from workers that share them."
    )
    commands = top.add_subparsers(required=True, metavar="command", parser_class=_CommandParser)
    for command in COMMANDS:
        text = command.run.__doc__
        own = commands.add_parser(command.run.__name__.replace("_", "-"), help=text, description=text)
        own.set_defaults(run=command.run)
        for names, options in command.arguments:
            own.add_argument(*names, **options)
    return top
