"""Who tells other instances of a reload, who hears it, and that nobody answers with another one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.errors import CannotReload
from serving.events.sqlite import SQLiteEventLog
from serving.master.announcements import TOPIC, Announcements, announce
from serving.shared.reloads import MASTER, Outcome, Reloads
from tests.serving.conftest import PATIENCE, until

pytestmark = pytest.mark.anyio


class Instance:
    """A worker whose master does nothing but count the signals that it gets, until it is told to reload."""

    def __init__(self, events: SQLiteEventLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events = events
        self.reloads = Reloads()
        self.reloads._numbers[MASTER] = os.getppid()
        self.signals = 0
        self._monkeypatch = monkeypatch

    def reload(self) -> None:
        """As the master does it."""
        self.reloads.begin()
        self.reloads.finish(Outcome())

    def request(self, *, told: bool = False) -> int:
        """As one of its processes asks for it."""

        def kill(pid: int, number: int) -> None:
            assert (pid, number) == (os.getppid(), signal.SIGHUP)
            self.signals += 1

        with self._monkeypatch.context() as patched:
            patched.setattr("serving.shared.reloads.os.kill", kill)
            return self.reloads.request(told=told)

    async def hear(self) -> int:
        """Listen once, as whichever worker does it now; how many reloads that asks the master for, who does them."""
        asked: list[int] = []
        request = self.reloads.request

        def ask(*, told: bool = False) -> int:
            setattr(self.reloads, "request", request)  # noqa: B010 - mypy takes methods for constants
            asked.append(self.request(told=told))
            self.reload()
            return asked[-1]

        setattr(self.reloads, "request", ask)  # noqa: B010
        await Announcements(self.events, self.reloads)._hear()
        setattr(self.reloads, "request", request)  # noqa: B010
        return len(asked)


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[SQLiteEventLog]:
    log = SQLiteEventLog(tmp_path, poll_seconds=0.005, busy_seconds=PATIENCE)
    yield log
    await log.close()


@pytest.fixture
def instance(events: SQLiteEventLog, monkeypatch: pytest.MonkeyPatch) -> Instance:
    return Instance(events, monkeypatch)


async def test_a_reload_of_ones_own_is_said_once(instance: Instance) -> None:
    assert instance.reloads.unsaid is None
    said = []
    for _ in range(2):
        instance.reload()
        number = instance.reloads.unsaid or 0
        instance.reloads.note_said(number)
        said += [number, instance.reloads.unsaid]
    assert said == [1, None, 2, None]


async def test_a_reload_that_another_instance_wanted_is_not_said(instance: Instance) -> None:
    for number in (1, 2):
        assert instance.request(told=True) == number
        instance.reload()
        assert instance.reloads.unsaid is None
    assert instance.signals == 2


async def test_a_reload_for_both_is_said(instance: Instance) -> None:
    assert instance.request(told=True) == instance.request() == 1
    instance.reload()
    assert instance.reloads.unsaid == 1


async def test_a_reload_of_ones_own_right_before_one_that_was_told_is_said(instance: Instance) -> None:
    instance.reloads.begin()
    instance.request(told=True)
    instance.reloads.finish(Outcome())
    instance.reload()
    assert instance.reloads.unsaid == 2


async def test_who_has_no_master_cannot_ask(instance: Instance) -> None:
    instance.reloads._numbers[MASTER] = 0
    with pytest.raises(CannotReload):
        instance.request()


async def test_what_others_tell_is_one_reload_however_often_it_is_said(instance: Instance) -> None:
    for reason in ("one", "two", "three"):
        await announce(instance.events, reason, instance="other")
    assert await instance.hear() == 1
    assert await instance.hear() == 0
    assert instance.reloads.unsaid is None, "who was told does not tell again"
    await announce(instance.events, "four")
    assert await instance.hear() == 1
    assert instance.reloads.unsaid is None, "who was told does not tell again"


async def test_ones_own_words_and_the_events_of_jobs_are_passed_over(instance: Instance) -> None:
    await announce(instance.events, "mine", instance=instance.reloads.instance)
    await instance.events.append("a-job", "done", b"{}")
    assert await instance.hear() == 0
    assert instance.reloads.heard == (await instance.events.read(None, 0, 0)).latest


async def test_what_was_told_before_the_models_were_loaded_is_not_heard(instance: Instance) -> None:
    await announce(instance.events, "old", instance="other")
    instance.reloads.made += 60
    assert await instance.hear() == 0
    await announce(instance.events, "new", instance="other")
    assert await instance.hear() == 1, "although the clock of the log is behind ours"


async def test_an_empty_log_says_nothing_and_then_what_comes(instance: Instance) -> None:
    assert [await instance.hear() for _ in range(3)] == [0, 0, 0]
    await instance.events.append("a-job", "done", b"{}")
    assert await instance.hear() == 0
    await announce(instance.events, "new", instance="other")
    assert await instance.hear() == 1


async def test_what_nobody_understands_is_a_reload_and_what_was_forgotten_too(instance: Instance) -> None:
    await announce(instance.events, "mine", instance=instance.reloads.instance)
    assert await instance.hear() == 0
    await instance.events.append(TOPIC, "reload", b"\xff")
    assert await instance.hear() == 1
    await announce(instance.events, "forgotten", instance="other")
    await instance.events.prune(-60)
    assert await instance.hear() == 1
    assert await instance.hear() == 0


async def test_a_worker_tells_the_reload_of_its_master_and_a_job_of_promotion_is_heard(instance: Instance) -> None:
    announcements = Announcements(instance.events, instance.reloads)
    running = asyncio.create_task(announcements.run())
    instance.reload()

    async def told() -> bool:
        return bool((await instance.events.read(TOPIC, 0, 10)).events) and instance.reloads.unsaid is None

    await until(told)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await announcements.close()
    assert len((await instance.events.read(TOPIC, 0, 10)).events) == 1
