"""The master: which ends of a worker stop the whole service."""

from __future__ import annotations

import os
import queue
import signal
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from gunicorn.errors import HaltServer

from serving.master.arbiter import EarlyReplacingArbiter

PID = 12345
CHLD, HUP, INT, TERM = signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM
TTIN, USR1 = signal.SIGTTIN, signal.SIGUSR1


def _reap(status: int, monkeypatch: pytest.MonkeyPatch) -> EarlyReplacingArbiter:
    """A master that has reaped its one worker, which has ended with a status."""
    arbiter = EarlyReplacingArbiter.__new__(EarlyReplacingArbiter)
    arbiter.WORKERS = {PID: SimpleNamespace(tmp=MagicMock(), aborted=False)}
    arbiter.cfg, arbiter.log = MagicMock(), MagicMock()
    arbiter.reexec_pid = arbiter.dirty_arbiter_pid = 0
    ended = iter([(PID, status << 8)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "waitpid", lambda *_: next(ended, (0, 0)))
        arbiter.reap_workers()
    return arbiter


@pytest.mark.parametrize("status", [1, 3, 4, 255])
def test_a_worker_that_a_models_code_ends_is_only_replaced(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _reap(status, monkeypatch).WORKERS


def test_a_worker_that_cannot_start_stops_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HaltServer):
        _reap(EarlyReplacingArbiter.WORKER_BOOT_ERROR, monkeypatch)


@pytest.mark.parametrize(
    ("received", "handled"),
    [
        ([], []),
        ([HUP], [HUP]),
        ([HUP] * 25, [HUP]),
        ([HUP, CHLD, HUP, CHLD, HUP], [CHLD, HUP]),
        ([HUP, USR1, CHLD, USR1], [CHLD, USR1, HUP]),
        ([HUP, TTIN, TTIN], [TTIN, TTIN, HUP]),
        ([*[HUP] * 10, TERM], [TERM]),
        ([TERM, HUP, INT, CHLD], [INT]),
        ([signal.NSIG, HUP], [HUP]),
    ],
)
def test_signals_that_wait_are_joined_and_the_end_comes_first(received: list[int], handled: list[int]) -> None:
    arbiter = EarlyReplacingArbiter.__new__(EarlyReplacingArbiter)
    arbiter.SIG_QUEUE = queue.SimpleQueue()
    for number in received:
        arbiter.SIG_QUEUE.put(number)
    assert arbiter.wait_for_signals(timeout=0.01) == handled
