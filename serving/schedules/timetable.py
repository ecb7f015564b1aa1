"""What the operator sees of schedules: when each fires next, when it last did, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from serving.errors import StoreUnavailable
from serving.schedules.schedule import Schedule
from serving.schedules.store import ScheduleStore
from serving.schedules.when import NEVER


class Timetable:
    """Read by web workers and the command line; who fires is the scheduler."""

    def __init__(
        self, schedules: Sequence[Schedule], store: ScheduleStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._schedules = schedules
        self._store = store
        self._clock = clock

    async def rows(self) -> list[dict[str, Any]]:
        """A row for each schedule, in JSON's types; without last firing and counts while the store is away."""
        if not self._schedules:
            return []
        try:
            records = await self._store.records()
        except StoreUnavailable:
            records = {}
        now = self._clock()
        return [
            {
                "name": schedule.name,
                "when": str(schedule.when),
                "action": schedule.text,
                "grace_seconds": schedule.grace,
                "next": moment(schedule.when.after(now)),
                "last": moment(records[schedule.name].last) if schedule.name in records else None,
                **(asdict(records[schedule.name].counts) if schedule.name in records else {}),
            }
            for schedule in self._schedules
        ]

    async def close(self) -> None:
        """Disconnect."""
        await self._store.close()


def moment(seconds: float) -> str | None:
    """A time as ISO 8601 in UTC, to the second."""
    return None if seconds == NEVER else datetime.fromtimestamp(int(seconds), UTC).isoformat()
