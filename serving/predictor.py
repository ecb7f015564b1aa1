"""Asks models off the event loop, and never waits longer than the deadline."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from registry.errors import ModelFailed
from registry.features import Rows
from registry.model import LoadedModel
from serving.errors import DeadlineExceeded

log = structlog.get_logger(__name__)


class Predictor:
    """The inference threads of one worker. Built before the fork, started after it: threads do not survive a fork."""

    def __init__(self, *, threads: int, timeout: float) -> None:
        self._threads = threads
        self._timeout = timeout
        self._pool: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Get ready to predict; to be called in the process that will."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="inference")

    def stop(self) -> None:
        """Let go of the threads; one that is stuck in compiled code cannot be killed and is left behind."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def predict(self, model: LoadedModel, rows: Rows, timeout: float | None = None) -> tuple[list[Any], float]:
        """Predictions, one a row, and the seconds the model itself took.

        `timeout` may shorten the deadline, never lengthen it. Raises DeadlineExceeded, ModelFailed.
        """
        assert self._pool is not None, "start() comes first"
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        running = asyncio.get_running_loop().run_in_executor(self._pool, _timed, model, rows)
        done, _ = await asyncio.wait({running}, timeout=seconds)
        if not done:
            running.cancel()  # still queued: never runs; already running: goes on unseen
            log.warning(f"Prediction timeout after {seconds:g}s", model=model.name, version=model.version)
            raise DeadlineExceeded(f"the prediction took longer than {seconds:g} s")
        return running.result()


def _timed(model: LoadedModel, rows: Rows) -> tuple[list[Any], float]:
    started = time.perf_counter()
    try:
        predictions = model.predict(rows)
    except ModelFailed:
        raise
    except Exception as error:
        # whatever an estimator raises on rows that fit its schema is the model's fault, not the client's
        raise ModelFailed(f"{model.name}/{model.version}: {type(error).__name__}: {error}") from error
    return predictions, time.perf_counter() - started
