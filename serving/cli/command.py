"""Commands: each declares its arguments beside its function, and prints through `say` and `fail`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from serving.settings import Settings

Run: TypeAlias = Callable[[argparse.Namespace, Settings], int]
"""Runs a command and gives the exit status."""

Argument: TypeAlias = tuple[tuple[str, ...], dict[str, Any]]


def argument(*names: str, **options: Any) -> Argument:
    """One argument of a command, as `ArgumentParser.add_argument` takes it."""
    return names, options


@dataclass(frozen=True, slots=True)
class Command:
    """A function under its name at the command line; its docstring is the help text."""

    run: Run
    arguments: tuple[Argument, ...]

    @property
    def name(self) -> str:
        return self.run.__name__.replace("_", "-")

    def add_to(self, commands: Any) -> None:
        """Add it to the subparsers of a parser."""
        parser = commands.add_parser(self.name, help=self.run.__doc__, description=self.run.__doc__)
        parser.set_defaults(command=self)
        for names, options in self.arguments:
            parser.add_argument(*names, **options)


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


def say(text: str, *, file: Any = None) -> None:
    """Print a line."""
    print(text, file=file or sys.stdout, flush=True)


def fail(*reasons: object) -> int:
    """Print each reason as a line on stderr; gives the exit status."""
    for reason in reasons:
        say(f"forkserve: {reason}", file=sys.stderr)
    return 1
