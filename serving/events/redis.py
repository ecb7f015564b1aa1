"""Events in one Redis stream, shared by all instances.

All topics are in one stream, so that one blocking read can follow it and one bound limits it. To read one topic, the
server passes over the others, a thousand events at a time, in about a millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from serving.events.log import MAX_EVENTS, Event, Page
from serving.storage.redis import BLOCK_SECONDS, ScriptedRedis
from serving.storage.seal import VERSION, Seal, place_of
from serving.storage.statements import statements

KEYS = ["forkserve:{events}:stream", "forkserve:{events}:first"]
"""The stream, and the first id that was not forgotten."""

COUNT_BITS = 20


class _End(msgspec.Struct, forbid_unknown_fields=True):
    state: Literal["done", "failed", "cancelled"]
    error: str


class _Chunk(msgspec.Struct, forbid_unknown_fields=True):
    chunk: int
    chunks_done: int
    chunks: int


class _Progress(msgspec.Struct, forbid_unknown_fields=True):
    progress: float


JOB_EVENTS: Mapping[str, type[msgspec.Struct]] = {
    "done": _End,
    "failed": _End,
    "cancelled": _End,
    "chunk": _Chunk,
    "progress": _Progress,
}
"""What the scripts that change jobs append, by kind."""

lua = statements(__file__, "redis.lua")
"""From names to scripts; `appending` is for scripts that change jobs, too."""


class RedisEventLog:
    """An EventLog of about `max_events` events: Redis forgets a hundred at a time."""

    def __init__(
        self,
        url: str,
        *,
        max_events: int = MAX_EVENTS,
        timeout: float = 1.0,
        health_check_interval: float = 30.0,
        seal: Seal | None = None,
    ) -> None:
        """Connecting, writing and reading may each take `timeout` seconds. Raises InvalidRedisUrl."""
        self._redis = ScriptedRedis(url, timeout=timeout, health_check_interval=health_check_interval)
        self._max_events = max_events
        self._seal = seal or Seal()

    async def append(self, topic: str, kind: str, data: bytes) -> int:
        # appended twice if the connection breaks before the answer: better than never
        signed = self._seal.close(place_of("event", topic, kind), data)
        script = lua("appending") + lua("append")
        return _number(await self._redis.run(script, KEYS, self._max_events, topic, kind, signed))

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        events: list[Event] = []
        position = _text(after)
        while True:
            wanted = limit - len(events)
            arguments = (topic or "", position, wanted)
            first, latest, found, further = await self._redis.run(lua("latest") + lua("read"), KEYS, *arguments)
            genuine = [event for entry in found if (event := self._event(entry)) is not None]
            events += genuine
            if first is not None and len(genuine) < wanted == len(found):
                position = found[-1][0].decode()
            elif further is None or first is None:
                return Page(events, _floor(first), _number(latest))
            else:
                position = further.decode()

    def _event(self, entry: list[bytes]) -> Event | None:
        """The event in an entry of the stream; None if it is not ours. Those of jobs are written by Redis, unsigned."""
        try:
            number, topic, kind, data = _number(entry[0]), entry[1].decode(), entry[2].decode(), entry[3]
            if data.startswith(VERSION):
                payload = self._seal.open(place_of("event", topic, kind), data)
            else:
                msgspec.json.decode(data, type=JOB_EVENTS[kind])
                payload = data
        except (IndexError, KeyError, ValueError, AttributeError, msgspec.MsgspecError):
            payload = None
        if payload is None:
            self._seal.report("events")
            return None
        return Event(number, topic, kind, payload)

    async def wait(self, after: int) -> None:
        block = int(BLOCK_SECONDS * 1000)
        await self._redis.wait("XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", KEYS[0], _text(after))

    async def prune(self, older_than: float) -> int:
        gone: int = await self._redis.run(lua("latest") + lua("prune"), KEYS, older_than)
        return gone

    async def drop(self, topic: str) -> int:
        gone: int = await self._redis.run(lua("drop"), KEYS, topic)
        return gone

    async def close(self) -> None:
        await self._redis.close()


def _floor(first: bytes | None) -> int:
    """The last id that was forgotten; of a key that holds anything else, none was."""
    try:
        return 0 if first is None else _number(first) - 1
    except ValueError:
        return 0


def _number(stream_id: bytes) -> int:
    milliseconds, _, count = stream_id.partition(b"-")
    return (int(milliseconds) << COUNT_BITS) + int(count)


def _text(number: int) -> str:
    return f"{number >> COUNT_BITS}-{number & ((1 << COUNT_BITS) - 1)}"
