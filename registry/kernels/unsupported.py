"""Why an estimator has no compiled form; never leaves this package."""

from __future__ import annotations


class Unsupported(Exception):
    """Something about the estimator has no compiled form; the message says what."""
