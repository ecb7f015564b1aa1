"""Functions for executors: well-behaved ones, and one for every way to behave badly."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

import numpy as np

from serving.process.executor import Function


def reverse(payload: bytes) -> bytes:
    return payload[::-1]


def tell_pid(payload: bytes) -> bytes:
    return str(os.getpid()).encode()


def read_gate(payload: bytes) -> bytes:
    """Wait until somebody writes into a FIFO."""
    return Path(payload.decode()).read_bytes()


def spin(payload: bytes) -> bytes:
    while True:
        pass


def sleep_with_the_gil(payload: bytes) -> bytes:
    ctypes.PyDLL(None).sleep(600)
    return b""


def fail(payload: bytes) -> bytes:
    raise ValueError("there is no such thing")


def leave(payload: bytes) -> bytes:
    raise SystemExit(0)


def crash(payload: bytes) -> bytes:
    os.kill(os.getpid(), signal.Signals(int(payload)))
    return b""


def exit_at_once(payload: bytes) -> bytes:
    os._exit(7)


def allocate(payload: bytes) -> bytes:
    return str(np.ones(int(payload), np.uint8).sum()).encode()


def hoard(payload: bytes) -> bytes:
    hoarded = []
    while True:
        hoarded.append([1])


def list_descriptors(payload: bytes) -> bytes:
    """What every open descriptor from 3 on points at."""
    descriptors = [path for path in Path("/proc/self/fd").iterdir() if int(path.name) > 2]
    # the one that was listed with is gone by now
    return "\n".join(str(path.readlink()) for path in descriptors if path.is_symlink()).encode()


FUNCTIONS: dict[str, Function] = {
    function.__name__: function
    for function in (
        reverse,
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
