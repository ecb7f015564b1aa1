"""Runs functions in forked processes that are killed at their deadline, for calls that a thread could not survive.

A function that holds the GIL, hangs, crashes or eats memory takes down a process that shares the worker's memory by
copy-on-write and that another one replaces in milliseconds. Threads cannot be killed, and a pool that starts fresh
interpreters would load every model anew. What it costs: about 0.2 ms a call, and a few private megabytes a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import structlog

from serving.errors import CallFailed, DeadlineExceeded, ExecutorGone, Overloaded
from serving.process import wire
from serving.process.calls import Function, answer_calls, raise_failure
from serving.process.wire import Rows
from serving.process.zygote import Child, Zygote

log = structlog.get_logger(__name__)

LARGEST_RESULT = 256 * 1024 * 1024
"""In bytes; the worker has to hold it."""


class Executor:
    """The executor processes of one worker, forked when they are first needed, and the calls that wait for them.

    Built before the fork with all the functions that there will be. What a function builds lazily is lost with its
    process, so it should be built before, too.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        *,
        processes: int = 1,
        waiting: int = 8,
        memory: int = 256 * 1024 * 1024,
        background: bool = False,
        reuse: bool = True,
    ) -> None:
        """At most `waiting` calls wait for one of `processes`, which may allocate `memory` bytes each.

        In the `background` they compute only with what other processes leave of the processor. Without `reuse` a
        process is killed after its call, along with all that it has left running.
        """
        self._functions = functions
        self._most = processes + waiting
        self._turns = asyncio.Semaphore(processes)  # first come, first served
        self._calls = 0
        self._idle: list[Child] = []
        self._zygote = Zygote(partial(answer_calls, functions=functions, memory=memory, background=background))
        self._reuse = reuse
        self._started = False
        self.replacements = 0
        """Processes killed or lost since the start."""

    def start(self) -> None:
        """Fork the zygote, if there are functions; a second time does nothing.

        To be called in the worker while it has one thread: under gunicorn in `post_worker_init`, before there is an
        event loop; with uvicorn alone first thing in the lifespan, whose loop the zygote never touches.
        """
        if self._functions and not self._started:
            self._started = True
            self._zygote.start()

    def stop(self) -> None:
        """End all processes and wait for them, a few milliseconds; calls that still run fail."""
        if self._started:
            self._started = False
            self._zygote.stop()
            while self._idle:
                self._zygote.kill(self._idle.pop())

    def unwell(self) -> str | None:
        """Why this worker should be replaced, if it should."""
        if self._started and self._zygote.is_gone():
            return "the zygote of its executors has ended"
        return None

    async def run(self, key: str, rows: Rows, parameters: Mapping[str, Any] | None = None, *, timeout: float) -> bytes:
        """What the function under `key` gives for `rows` (n, features), within `timeout` seconds, waiting included.

        Raises Overloaded, DeadlineExceeded, CallFailed, MemoryExceeded, ExecutorGone; KeyError for a key that is not
        there. May be cancelled at any time; what runs for it is killed.
        """
        if key not in self._functions:
            raise KeyError(key)
        if self._calls >= self._most:
            raise Overloaded
        shape = rows.shape[0], rows.shape[1]
        frame = wire.pack(wire.Call(key, shape, parameters or {}), np.asarray(rows, np.float64).tobytes())
        self._calls += 1
        try:
            async with asyncio.timeout(timeout), self._turns:
                return await self._run(key, frame)
        except TimeoutError:
            raise DeadlineExceeded(f"the computation took longer than {timeout:g} s") from None
        finally:
            self._calls -= 1

    async def _run(self, key: str, frame: bytes) -> bytes:
        child = self._take()
        reusable = False
        try:
            outcome, result = await self._ask(child, frame)
            reusable = self._reuse and outcome.status != "out of memory"  # what it holds on to, nobody knows
        finally:
            if reusable:
                self._idle.append(child)
            else:
                if self._reuse:
                    log.info("Executor process is replaced", key=key)
                    self.replacements += 1
                self._zygote.kill(child)
        raise_failure(outcome)
        return result

    def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if not child.ended.done():
                return child
            child.socket.close()
        return self._zygote.fork()

    async def _ask(self, child: Child, frame: bytes) -> tuple[wire.Outcome, bytes]:
        try:
            outcome, size = await wire.send_call(child.socket, frame)
            if size > LARGEST_RESULT:
                raise CallFailed(f"a result of {size} bytes is too large")
            return outcome, bytes(await wire.receive(child.socket, size))
        except (EOFError, OSError):
            how = await child.ended
            if self._zygote.is_gone():
                raise ExecutorGone from None
            raise CallFailed(f"the process that ran the call {how}") from None
