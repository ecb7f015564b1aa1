"""Runs functions in forked processes that are killed at their deadline, for calls that a thread could not survive.

A function that holds the GIL, hangs, crashes or eats memory takes down a process that shares the worker's memory by
copy-on-write and that another one replaces in milliseconds. Threads cannot be killed, and a pool that starts fresh
interpreters would load every model anew. What it costs: about 0.2 ms a call, and a few private megabytes a process.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, Any, Literal, TypeAlias

import msgspec
import structlog

from registry.memory import limit_memory
from serving.errors import CallFailed, DeadlineExceeded, ExecutorGone, MemoryExceeded, Overloaded
from serving.process.child import be_early_out_of_memory, give_way
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

SIZE = struct.Struct("<Q")
"""Bytes of the MessagePack that follows: a call (name, payload), or its CallOutcome. Never pickle."""


class CallOutcome(msgspec.Struct, frozen=True):
    """The end of a call."""

    status: Literal["done", "failed", "out of memory"]
    value: bytes = b""
    error: str = ""
    traceback: str = ""

    def result(self) -> bytes:
        """Return the value of the function. Raises CallFailed, MemoryExceeded."""
        if self.status == "failed":
            error = CallFailed(self.error)
            error.add_note(self.traceback)
            raise error
        if self.status == "out of memory":
            raise MemoryExceeded
        return self.value


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
                return await self._run(name, _pack((name, payload)))
        except TimeoutError:
            raise DeadlineExceeded(f"the computation took longer than {timeout:g} s") from None
        finally:
            self._calls -= 1

    async def _run(self, name: str, frame: bytearray) -> bytes:
        child = self._take()
        reusable = False
        try:
            outcome = await self._ask(child, frame)
            reusable = self._reuse and outcome.status != "out of memory"  # it may still hold what it allocated
        finally:
            if reusable:
                self._idle.append(child)
            else:
                if self._reuse:
                    log.info("Executor process is replaced", key=name)
                    self.replacements += 1
                self._zygote.kill(child)
        return outcome.result()

    def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if not child.ended.done():
                return child
            child.socket.close()
        return self._zygote.fork()

    async def _ask(self, child: Child, frame: bytearray) -> CallOutcome:
        try:
            await asyncio.get_running_loop().sock_sendall(child.socket, frame)
            (size,) = SIZE.unpack(await _receive(child.socket, SIZE.size))
            if size > MAX_RESULT_BYTES:
                raise CallFailed(f"a result of {size} bytes is too large")
            return msgspec.msgpack.decode(await _receive(child.socket, size), type=CallOutcome)
        except (EOFError, OSError):
            how = await child.ended
            if self._zygote.is_gone():
                raise ExecutorGone from None
            raise CallFailed(f"the process that ran the call {how}") from None


async def _receive(sock: socket.socket, size: int) -> bytearray:
    """Receive exactly `size` bytes on the event loop. Raises EOFError."""
    loop = asyncio.get_running_loop()
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = await loop.sock_recv_into(sock, rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


def _pack(message: Any) -> bytearray:
    frame = bytearray(SIZE.size)
    msgspec.msgpack.Encoder().encode_into(message, frame, SIZE.size)
    SIZE.pack_into(frame, 0, len(frame) - SIZE.size)
    return frame


def answer_calls(sock: socket.socket, functions: Mapping[str, Function], memory: int, *, background: bool) -> None:
    """Run calls in an executor process, one after the other, until the worker closes the connection."""
    be_early_out_of_memory()
    if background:
        give_way()
    limit_memory(memory)
    calls = sock.makefile("rb")
    while True:
        try:
            (size,) = SIZE.unpack(_read(calls, SIZE.size))
            name, payload = msgspec.msgpack.decode(_read(calls, size), type=tuple[str, bytes])
        except EOFError:
            return
        sock.sendall(_pack(run_call(functions[name], payload)))


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def run_call(function: Function, payload: bytes) -> CallOutcome:
    """Call the function; its errors become the outcome."""
    try:
        return CallOutcome("done", function(payload))
    except MemoryError:
        pass  # the error holds on to what was allocated, and answering takes memory: let go of it first
    except BaseException as error:  # noqa: BLE001 - the edge of the process: whatever it is, the caller is told
        text = traceback.format_exception_only(error)[-1].strip()
        trace = "".join(traceback.format_exception(error))
        return CallOutcome("failed", error=text, traceback=trace[-MAX_TRACEBACK_CHARACTERS:])
    return CallOutcome("out of memory")
