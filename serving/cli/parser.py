"""The command line: all commands of `forkserve`."""

from __future__ import annotations

import argparse

from serving.cli.check import check
from serving.cli.inspection import inspect
from serving.cli.keys import keys
from serving.cli.load_test import load_test
from serving.cli.models import add, explain, models, promote, remove, retrain, rollback, train
from serving.cli.records import entities
from serving.cli.serve import schedules, serve, worker
from serving.cli.verify import verify

COMMANDS = (
    serve,
    worker,
    schedules,
    models,
    inspect,
    add,
    explain,
    promote,
    rollback,
    remove,
    retrain,
    train,
    check,
    verify,
    load_test,
    entities,
    keys,
)


def parser() -> argparse.ArgumentParser:
    """Parses a command line; `run` of the result is the function of its command."""
    top = argparse.ArgumentParser(
        prog="forkserve", description="Serve scikit-learn models from workers that share them."
    )
    commands = top.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        text = command.run.__doc__
        own = commands.add_parser(command.run.__name__.replace("_", "-"), help=text, description=text)
        own.set_defaults(run=command.run)
        for names, options in command.arguments:
            own.add_argument(*names, **options)
    return top
