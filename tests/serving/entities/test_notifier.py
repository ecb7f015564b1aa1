"""Events of new records wait for their predictions: how many, and how many bytes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import structlog

from serving.entities import notifier as notifier_module
from serving.entities.notifier import EntityNotifier
from tests.serving.entities.conftest import record

pytestmark = pytest.mark.anyio


class Predictor:
    """Predicts nothing, for the two newest records."""

    max_records = 2

    async def bound_to(self, _entity: str) -> Sequence[Any]:
        return []

    async def predict_records(self, _records: Sequence[Any], _models: Sequence[Any]) -> Sequence[Any]:
        return []


class Events:
    """Remembers what is told of."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    async def append(self, topic: str, _kind: str, _data: bytes) -> int:
        self.topics.append(topic)
        return len(self.topics)


async def test_waiting_events_have_a_bound_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "MAX_QUEUED_BYTES", 1000)
    events = Events()
    notifier = EntityNotifier(cast("Any", Predictor()), cast("Any", events), lambda _error, _request: b"")
    with structlog.testing.capture_logs() as lines:
        notifier.add("a", [record(number) for number in range(10)], "request", size=4000)  # 800 of them are kept
        notifier.add("b", [record(1)], "request", size=201)
        notifier.add("c", [record(1)], "request", size=200)
        await notifier.close()
        notifier.add("d", [record(1)], "request", size=1000)
        await notifier.close()
    assert [line["entity"] for line in lines] == ["b"]
    assert events.topics == ["entity:a", "entity:c", "entity:d"]
