"""Runs functions in forked processes that are killed at their deadline, for calls that a thread could not survive.

A function that holds the GIL, hangs, crashes or eats memory takes down a process that shares the worker's memory by
copy-on-write and that another one replaces in milliseconds. Threads cannot be killed, and a pool that starts fresh
interpreters would load every model anew. What it costs: about 0.2 ms a call, and a few private megabytes a process.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import structlog

from serving.errors import CallFailed, DeadlineExceeded, ExecutorGone, MemoryExceeded, Overloaded
from serving.process import wire
from serving.process.child import be_early_out_of_memory, give_way, limit_memory
from serving.process.wire import CallOutcome
from serving.process.zygote import Child, Zygote

log = structlog.get_logger(__name__)

Function: TypeAlias = Callable[[bytes], bytes]
"""From a payload to a result; caller and function agree on what the bytes mean.

A function may start threads, but should leave no process behind: one that outlives a crash keeps the socket open, and
the call then fails only at its deadline.
"""

MAX_RESULT_BYTES = 256 * 1024 * 1024
"""The worker has to hold the whole result."""

MAX_TRACEBACK_CHARACTERS = 8 * 1024


class Executor:
    """The executor processes of one worker, forked when they are first needed, and the calls that wait for them.

    Build it before the fork, with all functions: what a function builds lazily is lost with its process.
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
        """At most `waiting` calls wait for one of `processes`, each of which may allocate `memory` bytes.

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
        """Fork the zygote, if there are functions; a second call does nothing.

        To be called in the worker while it has one thread: under gunicorn in `post_worker_init`, before there is an
        event loop; with uvicorn alone first thing in the lifespan, whose loop the zygote never touches.
        """
        if self._functions and not self._started:
            self._started = True
            self._zygote.start()

    def stop(self) -> None:
        """End all processes and wait for them, a few milliseconds; running calls fail."""
        if self._started:
            self._started = False
            self._zygote.stop()
            while self._idle:
                self._zygote.kill(self._idle.pop())

    def reason_to_replace(self) -> str | None:
        """Why this worker should be replaced, if it should."""
        if self._started and self._zygote.is_gone():
            return "the zygote of its executors has ended"
        return None

    async def run(self, name: str, payload: bytes, *, timeout: float) -> bytes:
        """The result of the function `name` within `timeout` seconds, waiting included.

        Raises Overloaded, DeadlineExceeded, CallFailed, MemoryExceeded, ExecutorGone; KeyError for an unknown name. May
        be cancelled at any time; the process that runs the call is killed then.
        """
        if name not in self._functions:
            raise KeyError(name)
        if self._calls >= self._most:
            raise Overloaded
        self._calls += 1
        try:
            async with asyncio.timeout(timeout), self._turns:
                return await self._run(name, wire.pack_call(name, payload))
        except TimeoutError:
            raise DeadlineExceeded(f"the computation took longer than {timeout:g} s") from None
        finally:
            self._calls -= 1

    async def _run(self, name: str, frame: bytes) -> bytes:
        child = self._take()
        reusable = False
        try:
            outcome, result = await self._ask(child, frame)
            reusable = self._reuse and outcome.status != "out of memory"  # it may still hold what it allocated
        finally:
            if reusable:
                self._idle.append(child)
            else:
                if self._reuse:
                    log.info("Executor process is replaced", key=name)
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

    async def _ask(self, child: Child, frame: bytes) -> tuple[CallOutcome, bytes]:
        try:
            outcome, size = await wire.send_call(child.socket, frame)
            if size > MAX_RESULT_BYTES:
                raise CallFailed(f"a result of {size} bytes is too large")
            return outcome, bytes(await wire.receive(child.socket, size))
        except (EOFError, OSError):
            how = await child.ended
            if self._zygote.is_gone():
                raise ExecutorGone from None
            raise CallFailed(f"the process that ran the call {how}") from None


def answer_calls(sock: socket.socket, functions: Mapping[str, Function], memory: int, *, background: bool) -> None:
    """Run calls in an executor process, one after the other, until the worker closes the connection."""
    be_early_out_of_memory()
    if background:
        give_way()
    limit_memory(memory)
    while True:
        try:
            name, payload = wire.receive_call(sock)
        except EOFError:
            return
        sock.sendall(wire.pack_outcome(*run_call(functions[name], payload)))


def run_call(function: Function, payload: bytes) -> tuple[CallOutcome, bytes]:
    """Call the function; its errors become the outcome."""
    try:
        return CallOutcome("done"), function(payload)
    except MemoryError:
        pass  # the error holds on to what was allocated, and answering takes memory: let go of it first
    except BaseException as error:  # noqa: BLE001 - the edge of the process: whatever it is, the caller is told
        text = traceback.format_exception_only(error)[-1].strip()
        trace = "".join(traceback.format_exception(error))
        return CallOutcome("failed", text, trace[-MAX_TRACEBACK_CHARACTERS:]), b""
    return CallOutcome("out of memory"), b""


def raise_failure(outcome: CallOutcome) -> None:
    """Raise CallFailed or MemoryExceeded in the caller, unless the call is done."""
    if outcome.status == "failed":
        error = CallFailed(outcome.error)
        error.add_note(outcome.traceback)
        raise error
    if outcome.status == "out of memory":
        raise MemoryExceeded
