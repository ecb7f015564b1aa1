"""Calls that may hang, hold the GIL or eat memory, run in forked processes that can be killed."""

from __future__ import annotations

from serving.executor.executor import Executor

__all__ = ["Executor"]
