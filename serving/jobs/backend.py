"""Where the rows of jobs are computed: in processes of this runner, or wherever else implements the same."""

from __future__ import annotations

from typing import Protocol

from serving.predict.operation import Operation
from serving.process.executor import Executor


class Backend(Protocol):
    """Runs operations for one runner, on its event loop."""

    at_once: int
    """Chunks of a job that it is to be given at the same time."""

    async def run(self, operation: Operation, payload: bytes, /, *, timeout: float) -> bytes:
        """The JSON array of one answer a row, for a payload of `encode_rows`, within `timeout` seconds.

        Raises DeadlineExceeded, CallFailed, MemoryExceeded, ExecutorGone. May be cancelled at any time.
        """
        ...

    async def close(self) -> None:
        """Disconnect from whatever it is connected to."""
        ...


class LocalBackend:
    """One call after the other, in the executor processes of the runner."""

    at_once = 1

    def __init__(self, executor: Executor) -> None:
        """`executor` can run all operations that it will be asked for, under their names; the runner starts it."""
        self._executor = executor

    async def run(self, operation: Operation, payload: bytes, *, timeout: float) -> bytes:
        return await self._executor.run(operation.name, payload, timeout=timeout)

    async def close(self) -> None: ...
