"""The command line: all commands of `forkserve`."""

from __future__ import annotations

import argparse

from serving.cli.check import check
from serving.cli.load_test import load_test
from serving.cli.models import add, explain, models, promote, rollback
from serving.cli.records import entities
from serving.cli.serve import schedules, serve, worker
from serving.cli.train import retrain, train
from serving.cli.verify import verify

COMMANDS = (
    serve,
    worker,
    schedules,
    models,
    add,
    explain,
    promote,
    rollback,
    retrain,
    train,
    check,
    verify,
    load_test,
    entities,
)


def parser() -> argparse.ArgumentParser:
    """Parses a command line; `command` of the result is the Command."""
    top = argparse.ArgumentParser(
        prog="forkserve", description="Serve scikit-learn models from workers that share them."
    )
    commands = top.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_to(commands)
    return top
