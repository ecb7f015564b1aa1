"""What can be wrong with a service elsewhere."""

from __future__ import annotations


class Unreachable(Exception):
    """Nobody answers there, or somebody else does."""
