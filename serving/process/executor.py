"""Runs functions in forked processes that are killed at their deadline, for calls that a thread could not survive.

A function that holds the GIL, hangs, crashes or eats memory takes down a process that shares the worker's memory by
copy-on-write and that another one replaces in milliseconds. Threads cannot be killed, and a pool that starts fresh
interpreters would load every model anew. What it costs: about 0.2 ms a call, and a few private megabytes a process.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import struct
import traceback
from collections.abc import Callable, Mapping, Sequence
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

Tool: TypeAlias = Callable[[bytes, Sequence[int]], bytes]
"""A function that also gets the descriptors of files, which it may read and write but not close."""

MAX_FILES = 2

MAX_RESULT_BYTES = 256 * 1024 * 1024
"""The worker has to hold the whole result."""

MAX_TRACEBACK_CHARACTERS = 8 * 1024

TOOL_IDLE_SECONDS = 60.0
"""A process with tools ends after so many seconds without a call."""

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


class _Pool:
    """Processes of one kind, the calls that wait for one of them, and how long one may be idle."""

    def __init__(self, processes: int, waiting: int, idle_seconds: float) -> None:
        self.most = processes + waiting
        self.turns = asyncio.Semaphore(processes)  # first come, first served
        self.calls = 0
        self.idle: dict[Child, asyncio.TimerHandle | None] = {}
        self.idle_seconds = idle_seconds


class Executor:
    """The executor processes of one worker, forked when they are first needed, and the calls that wait for them.

    Build it before the fork, with all functions: what a function builds lazily is lost with its process.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        *,
        tools: Mapping[str, Tool] | None = None,
        processes: int = 1,
        waiting: int = 8,
        memory: int = 256 * 1024 * 1024,
        background: bool = False,
        reuse: bool = True,
    ) -> None:
        """At most `waiting` calls wait for one of `processes`, each of which may allocate `memory` bytes.

        In the `background` they compute only with what other processes leave of the processor. Without `reuse` a
        process is killed after its call, along with all that it has left running. `tools` have a process of their own,
        which ends when it was idle for a while: they import what only they need.
        """
        self._tools = tools or {}
        self._functions = functions
        self._calls = _Pool(processes, waiting, math.inf if reuse else 0.0)
        self._tool_calls = _Pool(1, waiting, TOOL_IDLE_SECONDS)
        every = {name: _without_files(function) for name, function in functions.items()} | dict(self._tools)
        self._zygote = Zygote(partial(answer_calls, functions=every, memory=memory, background=background))
        self._started = False
        self.replacements = 0
        """Processes killed or lost since the start."""

    def start(self) -> None:
        """Fork the zygote, if there are functions; a second call does nothing.

        To be called in the worker while it has one thread: under gunicorn in `post_worker_init`, before there is an
        event loop; with uvicorn alone first thing in the lifespan, whose loop the zygote never touches.
        """
        if (self._functions or self._tools) and not self._started:
            self._started = True
            self._zygote.start()

    def stop(self) -> None:
        """End all processes and wait for them, a few milliseconds; running calls fail."""
        if self._started:
            self._started = False
            self._zygote.stop()
            for pool in (self._calls, self._tool_calls):
                while pool.idle:
                    self._end_idle(pool, next(iter(pool.idle)))

    def reason_to_replace(self) -> str | None:
        """Why this worker should be replaced, if it should."""
        if self._started and self._zygote.is_gone():
            return "the zygote of its executors has ended"
        return None

    async def run(self, name: str, payload: bytes, *, timeout: float, files: Sequence[IO[bytes]] = ()) -> bytes:
        """The result of the function `name` within `timeout` seconds, waiting included.

        A tool gets `files`, at most MAX_FILES. Raises Overloaded, DeadlineExceeded, CallFailed, MemoryExceeded,
        ExecutorGone; KeyError for an unknown name. May be cancelled at any time; the process that runs the call is
        killed then.
        """
        if name not in self._functions and name not in self._tools:
            raise KeyError(name)
        pool = self._tool_calls if name in self._tools else self._calls
        if pool.calls >= pool.most:
            raise Overloaded
        pool.calls += 1
        try:
            async with asyncio.timeout(timeout), pool.turns:
                return await self._run(pool, name, _pack((name, payload)), files)
        except TimeoutError:
            raise DeadlineExceeded(f"the computation took longer than {timeout:g} s") from None
        finally:
            pool.calls -= 1

    async def _run(self, pool: _Pool, name: str, frame: bytearray, files: Sequence[IO[bytes]]) -> bytes:
        child = self._take(pool)
        reusable = False
        try:
            outcome = await self._ask(child, frame, files)
            reusable = outcome.status != "out of memory"  # it may still hold what it allocated
        finally:
            if reusable and pool.idle_seconds:
                self._keep(pool, child)
            else:
                if pool.idle_seconds:
                    log.info("Executor process is replaced", key=name)
                    self.replacements += 1
                self._zygote.kill(child)
        return outcome.result()

    def _take(self, pool: _Pool) -> Child:
        while pool.idle:
            child, ending = pool.idle.popitem()
            if ending is not None:
                ending.cancel()
            if not child.ended.done():
                return child
            child.socket.close()
        return self._zygote.fork()

    def _keep(self, pool: _Pool, child: Child) -> None:
        """Keep a process for the next call, for as long as the pool keeps one."""
        ending = None
        if pool.idle_seconds < math.inf:
            ending = asyncio.get_running_loop().call_later(pool.idle_seconds, self._end_idle, pool, child)
        pool.idle[child] = ending

    def _end_idle(self, pool: _Pool, child: Child) -> None:
        ending = pool.idle.pop(child)
        if ending is not None:
            ending.cancel()
        self._zygote.kill(child)

    async def _ask(self, child: Child, frame: bytearray, files: Sequence[IO[bytes]]) -> CallOutcome:
        try:
            if files:  # with the first bytes, which an idle process has room for
                socket.send_fds(child.socket, [frame[: SIZE.size]], [file.fileno() for file in files])
                frame = frame[SIZE.size :]
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


def _without_files(function: Function) -> Tool:
    return lambda payload, _files: function(payload)


def answer_calls(sock: socket.socket, functions: Mapping[str, Tool], memory: int, *, background: bool) -> None:
    """Run calls in an executor process, one after the other, until the worker closes the connection."""
    be_early_out_of_memory()
    if background:
        give_way()
    limit_memory(memory)
    calls = sock.makefile("rb")
    while True:
        try:
            # not through `calls`, which has read all there is: files come along with the first bytes
            head, files, _, _ = socket.recv_fds(sock, SIZE.size, MAX_FILES)
            (size,) = SIZE.unpack(head + _read(calls, SIZE.size - len(head)))
            name, payload = msgspec.msgpack.decode(_read(calls, size), type=tuple[str, bytes])
        except (EOFError, ConnectionResetError):
            return
        outcome = run_call(functions[name], payload, files)
        for file in files:
            os.close(file)
        sock.sendall(_pack(outcome))


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def run_call(function: Callable[..., bytes], *arguments: Any) -> CallOutcome:
    """Call the function; its errors become the outcome."""
    try:
        return CallOutcome("done", function(*arguments))
    except MemoryError:
        pass  # the error holds on to what was allocated, and answering takes memory: let go of it first
    except BaseException as error:  # noqa: BLE001 - the edge of the process: whatever it is, the caller is told
        text = traceback.format_exception_only(error)[-1].strip()
        trace = "".join(traceback.format_exception(error))
        return CallOutcome("failed", error=text, traceback=trace[-MAX_TRACEBACK_CHARACTERS:])
    return CallOutcome("out of memory")
