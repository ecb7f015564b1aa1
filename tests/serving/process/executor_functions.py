"""Functions for executors: well-behaved ones, and one for every way to behave badly."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.process.calls import Function
from serving.process.wire import Rows

Parameters = Mapping[str, Any]


def scale(rows: Rows, parameters: Parameters) -> bytes:
    return (rows * parameters.get("factor", 1.0)).tobytes()  # type: ignore[no-any-return]


def tell_pid(rows: Rows, parameters: Parameters) -> bytes:
    return str(os.getpid()).encode()


def read_gate(rows: Rows, parameters: Parameters) -> bytes:
    """Wait until somebody writes into a FIFO."""
    return Path(parameters["gate"]).read_bytes()


def spin(rows: Rows, parameters: Parameters) -> bytes:
    while True:
        pass


def sleep_with_the_gil(rows: Rows, parameters: Parameters) -> bytes:
    ctypes.PyDLL(None).sleep(600)
    return b""


def fail(rows: Rows, parameters: Parameters) -> bytes:
    raise ValueError("there is no such thing")


def leave(rows: Rows, parameters: Parameters) -> bytes:
    raise SystemExit(0)


def crash(rows: Rows, parameters: Parameters) -> bytes:
    os.kill(os.getpid(), signal.Signals(parameters["signal"]))
    return b""


def exit_at_once(rows: Rows, parameters: Parameters) -> bytes:
    os._exit(7)


def allocate(rows: Rows, parameters: Parameters) -> bytes:
    return str(np.ones(parameters["size"], np.uint8).sum()).encode()


def hoard(rows: Rows, parameters: Parameters) -> bytes:
    hoarded = []
    while True:
        hoarded.append([1])


def list_descriptors(rows: Rows, parameters: Parameters) -> bytes:
    """What every open descriptor from 3 on points at."""
    descriptors = [path for path in Path("/proc/self/fd").iterdir() if int(path.name) > 2]
    # the one that was listed with is gone by now
    return "\n".join(str(path.readlink()) for path in descriptors if path.is_symlink()).encode()


FUNCTIONS: dict[str, Function] = {
    function.__name__: function
    for function in (
        scale,
        tell_pid,
        read_gate,
        spin,
        sleep_with_the_gil,
        fail,
        leave,
        crash,
        exit_at_once,
        allocate,
        hoard,
        list_descriptors,
    )
}
