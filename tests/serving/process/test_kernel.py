"""Threads that are just ending are no threads that stay."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from serving.process import kernel
from serving.process.kernel import lasting_threads, thread_names


def test_a_thread_that_ends_while_the_names_are_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def iterate(directory: Path) -> Any:
        return iter([directory / str(os.getpid()), directory / "999999999"])

    monkeypatch.setattr(Path, "iterdir", iterate)
    assert len(thread_names(os.getpid())) == 1


def test_threads_that_are_ending_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [["main", "trial", "trial"], ["main", "trial"], ["main"], ["main", "not looked at"]]
    monkeypatch.setattr(kernel, "thread_names", lambda _pid: looks.pop(0))
    assert lasting_threads() == ["main"]
    assert looks == [["main", "not looked at"]]


def test_a_thread_that_stays_is_named_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "ENDING_SECONDS", 0.0)
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    try:
        assert len(lasting_threads()) > 1
    finally:
        ending.set()
        thread.join()
