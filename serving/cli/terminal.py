"""Talks to the person at the terminal."""

from __future__ import annotations

import sys
from typing import Any


def say(text: str, *, file: Any = None) -> None:
    """Tell the person at the terminal."""
    print(text, file=file or sys.stdout, flush=True)


def progress(line: str) -> None:
    """In one line of a terminal; line after line elsewhere."""
    terminal = sys.stderr.isatty()
    sys.stderr.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
    sys.stderr.flush()
