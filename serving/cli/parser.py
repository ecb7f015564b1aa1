"""The command line: every command and what it takes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from serving.cli.models import MARGINS, add, explain, models, promote, rollback
from serving.cli.operating import check, load_test, schedules, verify
from serving.cli.records import entities
from serving.cli.serve import serve, worker
from serving.cli.train import retrain, train


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="forkserve", description="Serve scikit-learn models from workers that share them."
    )
    commands = top.add_subparsers(required=True, metavar="command")
    for command in (
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
    ):
        sub = commands.add_parser(command.__name__.replace("_", "-"), help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        if command is add:
            sub.add_argument("artefact", type=Path, help="a joblib file that holds a fitted estimator; it is executed")
            sub.add_argument("--name", required=True, help="the model's name")
            sub.add_argument("--data", required=True, type=Path, help="CSV of the model's input, one column a feature")
            sub.add_argument("--version", help="default: the number after the newest")
            sub.add_argument("--target", help="the column of the CSV that the model predicts; its metrics are measured")
            sub.add_argument("--labels", help="names of the classes with commas, in the order of classes_")
            sub.add_argument(
                "--train", type=Path, help="a train.py that trains the model anew; its code is executed then"
            )
            sub.add_argument("--entities", action="store_true", help="ask it about the records of entities, too")
            sub.add_argument("--source", default="", help="where the data come from, and under which licence")
            sub.add_argument(
                "--bounds",
                choices=tuple(MARGINS),
                default="wide",
                help="numbers to accept: only the range seen; as far outside as it is wide (default); all that fit",
            )
        if command in (verify, load_test):
            sub.add_argument("url", nargs="?", help="https://... of the service; default: this machine, port PORT")
        if command is verify:
            sub.add_argument("--wait", type=float, default=0.0, help="seconds that it may take until it is ready")
            sub.add_argument(
                "--max-memory-mb", type=float, default=math.inf, help="what all of its processes may take together"
            )
        if command is load_test:
            sub.add_argument("--seconds", type=float, default=10.0, help="default: 10")
            sub.add_argument("--connections", type=int, default=20, help="default: 20")
            sub.add_argument("--explained", type=float, default=0.1, help="share of explanations; default: 0.1")
            sub.add_argument("--repeated", type=float, default=0.2, help="share sent before; default: 0.2")
            sub.add_argument("--models", nargs="*", default=[], help="default: all")
        if command in (promote, rollback, retrain):
            sub.add_argument("model", help="the model's name")
        if command is promote:
            sub.add_argument("version", help="the version to make live")
        if command is worker:
            sub.add_argument("--once", action="store_true", help="do what is queued, then end; for cron")
        if command is explain:
            sub.add_argument("model", help="the model's name")
            sub.add_argument("--row", required=True, type=Path, help="JSON file: one row by name, or by position")
            sub.add_argument("--version", help="default: the one that is live")
            sub.add_argument("--top", type=int, help="show so many features, and the others as a sum")
            sub.add_argument("--plot", type=Path, help="draw a waterfall into this file: .png, .svg or .pdf")
    add_entities(commands)
    return top


def add_entities(commands: Any) -> None:
    """`forkserve entities` and what it can do."""
    sub = commands.add_parser("entities", help=entities.__doc__, description=entities.__doc__)
    sub.set_defaults(command=entities)
    actions = sub.add_subparsers(dest="action", required=True, metavar="action")
    importing = actions.add_parser("import", help="import a CSV file with the columns entity, time and more")
    importing.add_argument("file", type=Path, help="in UTF-8; what was imported before is not imported again")
    actions.add_parser("demo", help="import the records of the demo")
