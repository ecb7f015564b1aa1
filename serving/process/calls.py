"""What an executor process does all its life: take a call, run its function, say what became of it."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from serving.errors import CallFailed, MemoryExceeded
from serving.process import wire
from serving.process.child import be_early_out_of_memory, give_way, limit_memory
from serving.process.wire import Outcome, Rows

Function: TypeAlias = Callable[[Rows, Mapping[str, Any]], bytes]
"""Rows (n, features) and small parameters that survive JSON -> the result.

It may start threads, but should leave no process behind: one that outlives a crash keeps the socket open, and the call
then fails at its deadline only.
"""

TRACEBACK_LENGTH = 8 * 1024


def answer_calls(sock: socket.socket, functions: Mapping[str, Function], memory: int, *, background: bool) -> None:
    """Answer one call after the other until the other end is closed."""
    be_early_out_of_memory()
    if background:
        give_way()
    limit_memory(memory)
    while True:
        try:
            call, rows = wire.receive_call(sock)
        except EOFError:
            return
        outcome, result = run_call(functions[call.key], rows, call.parameters)
        sock.sendall(wire.pack(outcome, result))


def run_call(function: Function, rows: Rows, parameters: Mapping[str, Any]) -> tuple[Outcome, bytes]:
    """What the function gives, or how it broke; its errors do not leave here."""
    try:
        return Outcome("done"), function(rows, parameters)
    except MemoryError:
        pass  # the error holds on to what was allocated, and to say so takes memory: let go of it first
    except BaseException as error:  # noqa: BLE001 - the edge of the process: whatever it is, the caller is told
        text = traceback.format_exception_only(error)[-1].strip()
        return Outcome("failed", text, "".join(traceback.format_exception(error))[-TRACEBACK_LENGTH:]), b""
    return Outcome("out of memory"), b""


def raise_failure(outcome: Outcome) -> None:
    """Where the call was asked for: raises CallFailed or MemoryExceeded, unless it is done."""
    if outcome.status == "failed":
        error = CallFailed(outcome.error)
        error.add_note(outcome.traceback)
        raise error
    if outcome.status == "out of memory":
        raise MemoryExceeded
