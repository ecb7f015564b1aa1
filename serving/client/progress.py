"""A line on a terminal that says how far a job is, how fast it goes, and how long it still takes."""

from __future__ import annotations

import sys
import time

WIDTH = 30


class Progress:
    """Shows a line on stderr, in one place, if stderr is a terminal or it is asked for; a context manager."""

    def __init__(self, title: str, rows: int, *, shown: bool | None = None) -> None:
        """`rows` is 0 if nobody knows how many there are. `shown`: None for "if stderr is a terminal"."""
        self._title = title
        self._rows = rows
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._first: tuple[float, float] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and self._first is not None:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def show(self, state: str, share: float) -> None:
        """Show that `share` (0 to 1) is done."""
        if not self._shown:
            return
        now = time.monotonic()
        self._first = self._first or (now, share)
        sys.stderr.write(f"\r{self.line(state, share, now - self._first[0], share - self._first[1])}\x1b[K")
        sys.stderr.flush()

    def line(self, state: str, share: float, seconds: float, gained: float) -> str:
        """The text after `seconds`, in which `gained` of the work was done."""
        filled = int(WIDTH * share)
        text = f"{self._title} [{'#' * filled}{'.' * (WIDTH - filled)}] {share:4.0%} {state}"
        if not gained or not seconds:
            return text
        speed = gained / seconds
        rate = f"{speed * self._rows:,.0f} rows/s" if self._rows else f"{speed:.1%}/s"
        return f"{text}  {rate}  {_clock((1 - share) / speed)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
