"""Keeps pyarrow out of processes that do not read with it; importing this imports nothing.

pandas imports pyarrow at once wherever it is installed: tens of megabytes, and threads, which may not be there at a
fork.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType

ARROW = "pyarrow"


class _Hidden(MetaPathFinder):
    """Finds that pyarrow is not there. `None` in sys.modules would say so too, but scikit-learn looks there itself."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> None:
        if name == ARROW:
            raise ModuleNotFoundError(f"{ARROW} is hidden in this process", name=ARROW)


_hidden = _Hidden()


def hide_arrow() -> None:
    """Let no import find pyarrow; call this before pandas is first imported."""
    if _hidden not in sys.meta_path:
        sys.meta_path.insert(0, _hidden)


def show_arrow() -> None:
    """Let imports find pyarrow from now on; a pandas that is imported already does without."""
    if _hidden in sys.meta_path:
        sys.meta_path.remove(_hidden)


def has_arrow() -> bool:
    """Whether pyarrow is installed, hidden or not."""
    return PathFinder.find_spec(ARROW) is not None
