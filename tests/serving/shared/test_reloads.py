"""How a worker asks for a reload, and reads what came of it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from serving.errors import CannotReload
from serving.shared.reloads import SLOT_BYTES, ReloadOutcome, Reloads

pytestmark = pytest.mark.anyio


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was sent to whom."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("serving.shared.reloads.os.kill", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> Reloads:
    """Of a worker whose master is the parent of this process."""
    reloads = Reloads()
    with monkeypatch.context() as patched:
        patched.setattr("serving.shared.reloads.os.getpid", os.getppid)
        reloads.open()
    return reloads


def outcome(version: str) -> ReloadOutcome:
    return ReloadOutcome(added=(version,), live={"wine": version})


def test_a_process_without_a_master_cannot_ask(signals: list[tuple[int, int]]) -> None:
    reloads = Reloads()
    with pytest.raises(CannotReload):
        reloads.request()
    assert signals == []


def test_each_outcome_takes_the_place_of_the_one_before(reloads: Reloads) -> None:
    assert (reloads.finished, reloads.last()) == (0, ReloadOutcome())
    for number in (1, 2, 3):
        reloads.begin()
        assert reloads.finished == number - 1
        reloads.finish(outcome(f"wine/{number}"))
        assert (reloads.finished, reloads.last()) == (number, outcome(f"wine/{number}"))


async def test_who_asks_waits_for_a_reload_that_begins_afterwards(
    reloads: Reloads, signals: list[tuple[int, int]]
) -> None:
    reloads.begin()  # before the change that the next line stands for
    asking = asyncio.create_task(reloads.ask(30.0))
    await asyncio.sleep(0)
    assert signals == [(os.getppid(), signal.SIGHUP)]
    reloads.finish(outcome("wine/1"))
    done, _ = await asyncio.wait([asking], timeout=0.1)
    assert not done
    reloads.begin()
    reloads.finish(outcome("wine/2"))
    assert await asking == outcome("wine/2")


async def test_a_reload_that_takes_too_long_is_not_waited_for(reloads: Reloads, signals: list[tuple[int, int]]) -> None:
    assert await reloads.ask(0.0) is None
    assert len(signals) == 1


def test_an_outcome_that_is_too_long_says_where_to_look(reloads: Reloads) -> None:
    reloads.begin()
    reloads.finish(ReloadOutcome(refused=("x" * SLOT_BYTES,)))
    assert reloads.last().refused == ("the outcome is too long; see the log",)
