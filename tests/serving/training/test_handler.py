"""A retraining that is taken up again: what an earlier attempt has done is not done twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from registry.store import aliases
from registry.store.aliases import Aliases, current
from registry.store.directory import directories
from registry.training.candidates import HELD_OUT, candidate_root, find_candidate
from serving.errors import CallFailed, DeadlineExceeded
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.attempt import AttemptFailed, JobFailed
from serving.jobs.job import Job
from serving.jobs.sqlite import jobs_database
from serving.process.executor import Executor
from serving.training.handler import TrainHandler
from serving.training.job import TrainingResult, read_last
from serving.training.steps import Fitted
from tests.registry.test_promotion import add_plane

pytestmark = pytest.mark.anyio

GOOD = TrainingResult(
    model="plane",
    version="2",
    promoted=True,
    metrics={"r2": 0.9},
    live="1",
    live_metrics={"r2": 0.8},
    held_out_rows=10,
)


def make_candidate(root: Path) -> None:
    """A whole candidate of the job `j`."""
    aside = candidate_root(root, "j", 1)
    add_plane(aside, version="2", trained_by="j")
    (aside / HELD_OUT).touch()


class Processes:
    """In the place of an executor: what the steps give, or raise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: list[str] = []
        self.answers: dict[str, Any] = {"fit": Fitted(), "judge": GOOD}

    async def run(self, step: str, _order: bytes, *, timeout: float) -> bytes:
        assert timeout == 60.0
        self.steps.append(step)
        answer = self.answers[step]
        if isinstance(answer, Exception):
            raise answer
        if step == "fit" and not answer.error:
            make_candidate(self.root)
        return msgspec.json.encode(answer)


class Training:
    """A handler over a model directory with `plane`, and a job that trains it."""

    def __init__(self, root: Path, events: SQLiteEventLog) -> None:
        self.directory = root / "plane"
        self.processes = Processes(root)
        self.handler = TrainHandler(
            root,
            cast("Executor", self.processes),
            events,
            timeout=60.0,
            judging=60.0,
        )

    async def run(self) -> TrainingResult:
        job = Job(
            id="j",
            operation="train",
            model="plane",
            version="1",
            parameters=b"",
            state="running",
            chunks=1,
            max_attempts=3,
            created=0.0,
            due=0.0,
            attempts=2,
        )
        result = await self.handler(job, 0, b"", lambda _share: None)
        return msgspec.json.decode(result, type=TrainingResult)


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[SQLiteEventLog]:
    log = SQLiteEventLog(jobs_database(tmp_path / "data"))
    yield log
    await log.close()


@pytest.fixture
def training(tmp_path: Path, events: SQLiteEventLog) -> Training:
    add_plane(tmp_path / "models")
    return Training(tmp_path / "models", events)


async def test_new_version_is_made_judged_and_made_live(training: Training, events: SQLiteEventLog) -> None:
    result = await training.run()
    assert (result.promoted, result.version, result.live) == (True, "2", "1")
    assert training.processes.steps == ["fit", "judge"]
    assert current(training.directory) == Aliases("2", "1")
    page = await events.read("j", 0, 10)
    assert [event.kind for event in page.events] == ["training", "verifying", "promoted"]
    last = read_last(training.directory)
    assert last is not None
    assert (last.outcome, last.version) == ("promoted", "2")


async def test_whole_candidate_of_a_killed_attempt_is_judged_and_not_made_again(training: Training) -> None:
    make_candidate(training.handler.root)
    assert (await training.run()).promoted
    assert training.processes.steps == ["judge"]


async def test_version_that_was_named_but_not_made_live_is_made_live(training: Training) -> None:
    make_candidate(training.handler.root)
    candidate = find_candidate(training.handler.root, "j", "plane")
    assert candidate is not None
    aliases.write_aliases(training.directory, Aliases("1"))
    candidate.rename(training.directory / "2")
    result = await training.run()
    assert (result.promoted, result.live, training.processes.steps) == (True, "1", [])
    assert current(training.directory) == Aliases("2", "1")
    assert list(training.handler.root.glob(".*")) == []


async def test_version_that_is_live_already_is_not_made_again(training: Training) -> None:
    assert (await training.run()).promoted
    assert (await training.run()).promoted
    assert training.processes.steps == ["fit", "judge"]


async def test_version_that_was_rolled_back_meanwhile_stays_so(training: Training) -> None:
    await training.run()
    aliases.rollback(training.directory)
    await training.run()
    assert current(training.directory) == Aliases("1", "2")


async def test_candidate_is_judged_again_when_another_version_has_become_live(training: Training) -> None:
    make_candidate(training.handler.root)
    add_plane(training.handler.root, version="7")
    with pytest.raises(AttemptFailed, match="version 7 has become live meanwhile"):
        await training.run()
    training.processes.answers["judge"] = msgspec.structs.replace(GOOD, live="7")
    assert (await training.run()).live == "7"
    assert training.processes.steps == ["judge", "judge"]


async def test_refused_candidate_is_removed_and_the_reasons_are_told(
    training: Training, events: SQLiteEventLog
) -> None:
    training.processes.answers["judge"] = msgspec.structs.replace(GOOD, promoted=False, reasons=("r2 is 0.1",))
    result = await training.run()
    assert (result.promoted, result.reasons) == (False, ("r2 is 0.1",))
    assert [path.name for path in directories(training.directory)] == ["1"]
    assert list(training.handler.root.glob(".*")) == []
    page = await events.read("j", 0, 10)
    assert [event.kind for event in page.events] == ["training", "verifying", "refused"]


@pytest.mark.parametrize(
    ("step", "answer", "error", "message"),
    [
        ("fit", Fitted("ValueError: no"), JobFailed, "the training failed: ValueError: no"),
        ("fit", DeadlineExceeded("late"), JobFailed, "the training took longer than 60 s"),
        ("fit", CallFailed("was killed"), AttemptFailed, "fit: was killed"),
        ("judge", DeadlineExceeded("late"), JobFailed, "the verification took longer than 60 s"),
        ("judge", CallFailed("was killed"), AttemptFailed, "judge: was killed"),
    ],
)
async def test_failure_changes_nothing(
    training: Training, step: str, answer: Any, error: type[Exception], message: str
) -> None:
    training.processes.answers[step] = answer
    with pytest.raises(error, match=message):
        await training.run()
    assert current(training.directory) == Aliases("1")
    last = read_last(training.directory)
    assert (last is not None and last.outcome == "failed") == (error is JobFailed)
