"""Commands: each declares its arguments beside its function, and prints through `say` and `fail`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from serving.settings import Settings

Run: TypeAlias = Callable[[argparse.Namespace, Settings], int]
"""Runs a command and gives the exit status."""

Argument: TypeAlias = tuple[tuple[str, ...], dict[str, Any]]


def argument(*names: str, **options: Any) -> Argument:
    """One argument of a command, as `ArgumentParser.add_argument` takes it."""
    return names, options


def repeated(name: str, text: str, **options: Any) -> Argument:
    """An option that may be given several times; `text` says what it is for."""
    return argument(name, action="append", default=[], help=f"{text}; may be given several times", **options)


class Command(NamedTuple):
    """A function, whose name and docstring are those of the command, and its arguments."""

    run: Run
    arguments: tuple[Argument, ...]


def command(*arguments: Argument) -> Callable[[Run], Command]:
    """Decorate a function that runs a command with these arguments."""
    return lambda run: Command(run, arguments)


def number(kind: type[float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """The type of an argument: an int or a finite float from `low` to `high`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {low:g}{f' and at most {high:g}' * (high < math.inf)}")
        return value

    parse.__name__ = kind.__name__
    return parse


def kind_of_entities(text: str) -> str:
    """The type of an argument: a kind of entities."""
    from serving.entities.record import check_kind
    from serving.errors import InvalidRequest

    try:
        return check_kind(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def moment(text: str) -> datetime:
    """The type of an argument: a date or a time; without a zone it is UTC."""
    from serving.entities.record import parse_time
    from serving.errors import InvalidRequest

    try:
        return parse_time(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def write_text(path: Path, text: str) -> int:
    """Write a file; gives the exit status, and says why if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        return fail(f"{path}: {error.strerror}")
    return 0


def say(text: str, *, file: Any = None, end: str = "\n") -> None:
    """Print a line."""
    print(text, file=file or sys.stdout, end=end, flush=True)


def fail(*reasons: object) -> int:
    """Print each reason as a line on stderr; gives the exit status."""
    for reason in reasons:
        say(f"forkserve: {reason}", file=sys.stderr)
    return 1
