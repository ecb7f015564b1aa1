"""The master: which ends of a worker stop the whole service."""

from __future__ import annotations

import os
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from gunicorn.errors import HaltServer

from serving.master.arbiter import EarlyReplacingArbiter

PID = 12345


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
