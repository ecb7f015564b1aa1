"""Instances over one log of events tell each other of reloads: who has reloaded tells, who is told reloads once.

Context: every instance has a master of its own, which has no connections and so can neither tell nor hear. Decision:
one of its web workers, whichever has the lock, tells of each reload that the master has done, and listens. What it has
said and heard is in the memory that it shares with the others: the next one goes on from there. Consequence: a
connection for each instance, one reload for each, however many workers it has; who was told does not tell again.
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from serving.errors import CannotReload, StoreUnavailable
from serving.events.log import Event, EventLog, Page, first_id
from serving.shared.reloads import Reloads

log = structlog.get_logger(__name__)

TOPIC, KIND = "models", "reload"
"""No job has such an id, so no client can follow it."""

LEAD_SECONDS = 1.0
"""Between attempts to be the one who listens."""

LOOK_SECONDS = 0.2
"""Between looks for a reload of one's own, and at what was told: announcements in a row are one reload."""

AWAY_SECONDS = 1.0

RELOAD_SECONDS = 60.0
"""A reload is waited for before the next one is asked for."""

CLOCKS_DIFFER = 2.0
"""Seconds by which the clock of the log may be behind ours."""

AT_ONCE = 50

EMPTY = 1
"""Before all ids: an empty log has been heard to its end, and whatever comes next is new."""


class Announcement(msgspec.Struct, frozen=True):
    """What is told: by which instance, empty for none, and why."""

    instance: str = ""
    reason: str = ""


async def announce(events: EventLog, reason: str, *, instance: str = "") -> None:
    """Have all instances over this log reload, except `instance`. Raises StoreUnavailable."""
    await events.append(TOPIC, KIND, msgspec.json.encode(Announcement(instance, reason)))


class Announcements:
    """What a web worker does for its instance, if no other worker does. Built before the fork; it starts nothing."""

    def __init__(self, events: EventLog, reloads: Reloads) -> None:
        """`events` is for this alone: waiting takes a connection."""
        self._events = events
        self._reloads = reloads

    async def run(self) -> None:
        """Until it is cancelled."""
        while not (self._reloads.has_master and self._reloads.lead()):  # noqa: ASYNC110 - other processes have it
            await asyncio.sleep(LEAD_SECONDS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tell())
            group.create_task(self._listen())

    async def close(self) -> None:
        """Disconnect."""
        await self._events.close()

    async def _tell(self) -> None:
        while True:
            number = self._reloads.unsaid
            if number is not None:
                try:
                    await announce(self._events, "reloaded", instance=self._reloads.instance)
                except StoreUnavailable as error:
                    log.warning("Other instances cannot be told to reload", reason=str(error))
                    await asyncio.sleep(AWAY_SECONDS)
                    continue
                self._reloads.note_said(number)
                log.info("Other instances are told to reload")
            await asyncio.sleep(LOOK_SECONDS)

    async def _listen(self) -> None:
        away = False
        while True:
            try:
                await self._hear()
                await self._events.wait(self._reloads.heard)
            except StoreUnavailable as error:
                if not away:
                    log.warning("Other instances cannot be heard", reason=str(error))
                away = True
                await asyncio.sleep(AWAY_SECONDS)
            else:
                away = False
                await asyncio.sleep(LOOK_SECONDS)

    async def _hear(self) -> None:
        """Read on from what was heard last, and reload once for all that is new."""
        is_first = not self._reloads.heard
        heard = self._reloads.heard or first_id(int((self._reloads.made - CLOCKS_DIFFER) * 1000))
        page = await self._events.read(TOPIC, heard, AT_ONCE)
        reasons = [told.reason for told in map(_announcement, page.events) if told.instance != self._reloads.instance]
        if page.floor > heard > EMPTY and not is_first:
            reasons.append("the log of events has forgotten what was told")
        number = None
        if reasons:
            log.info("Told to reload", reasons=sorted(set(reasons)))
            try:
                number = self._reloads.request(told=True)
            except CannotReload as error:
                log.error("Reload refused", reason=str(error))
        self._reloads.heard = _position(page)
        if number is not None:
            await self._reloads.wait(number, RELOAD_SECONDS)


def _position(page: Page) -> int:
    """Up to where the log has been read; a log that is empty, or was begun anew, is behind what was heard."""
    if len(page.events) == AT_ONCE:
        return page.events[-1].id
    return page.latest or EMPTY


def _announcement(event: Event) -> Announcement:
    try:
        return msgspec.json.decode(event.data, type=Announcement)
    except msgspec.MsgspecError:  # of another release: whatever it says, it is about models
        return Announcement(reason=event.kind)
