"""How a command declares its arguments beside its function, and how it speaks to the person at the terminal."""

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


def positive(text: str) -> float:
    """The type of an argument: a finite number above zero."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be more than 0: {text}")
    return number


def count(text: str) -> int:
    """The type of an argument: a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1: {text}")
    return number


def share(text: str) -> float:
    """The type of an argument: a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1: {text}")
    return number


def say(text: str, *, file: Any = None) -> None:
    """Print a line."""
    print(text, file=file or sys.stdout, flush=True)


def fail(*reasons: object) -> int:
    """Print each reason as a line on stderr; gives the exit status."""
    for reason in reasons:
        say(f"forkserve: {reason}", file=sys.stderr)
    return 1


def progress(line: str) -> None:
    """Show progress: on one line of a terminal, elsewhere line by line."""
    terminal = sys.stderr.isatty()
    sys.stderr.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
    sys.stderr.flush()
