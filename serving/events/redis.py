"""Events in one Redis stream: shared by all instances.

One stream for all topics is what one blocking read can follow, and what one bound keeps small. To read one topic, the
server passes over the others, a thousand events at a time: about a millisecond each.
"""

from __future__ import annotations

from serving.events.log import MAX_EVENTS, Event, Page
from serving.storage.redis import BLOCK_SECONDS, ScriptedRedis

COUNT_BITS = 20

# `first` is the first id that was not forgotten. A stream's ids are text here: Lua's numbers are too short for them.
APPEND = """
local stream, first = KEYS[1], KEYS[2]
local length = redis.call('XLEN', stream)
local new = redis.call('EXISTS', stream) == 0
local id = redis.call('XADD', stream, 'MAXLEN', '~', ARGV[1], '*', 't', ARGV[2], 'k', ARGV[3], 'd', ARGV[4])
if new then
  redis.call('SET', first, id)
elseif redis.call('XLEN', stream) <= length then
  redis.call('SET', first, redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1])
end
return id
"""

LATEST = """
local function latest(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do if info[i] == 'last-generated-id' then return info[i + 1] end end
end
"""

READ = (
    LATEST
    + """
local stream, first = KEYS[1], KEYS[2]
local topic, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('EXISTS', stream) == 0 then return {false, '0-0', {}, after} end
local events = {}
if limit > 0 then
  local scanned = redis.call('XRANGE', stream, '(' .. after, '+', 'COUNT', 1000)
  after = #scanned == 1000 and scanned[1000][1] or false
  for _, entry in ipairs(scanned) do
    if topic == '' or entry[2][2] == topic then
      table.insert(events, {entry[1], entry[2][2], entry[2][4], entry[2][6]})
      if #events == limit then
        after = false
        break
      end
    end
  end
else after = false end
return {redis.call('GET', first), latest(stream), events, after}
"""
)

PRUNE = (
    LATEST
    + """
local stream, first, older = KEYS[1], KEYS[2], tonumber(ARGV[1])
if redis.call('EXISTS', stream) == 0 then return 0 end
local time = redis.call('TIME')
local oldest = string.format('%.0f', math.floor((tonumber(time[1]) + tonumber(time[2]) / 1e6 - older) * 1000))
local gone = redis.call('XTRIM', stream, 'MINID', oldest)
if gone > 0 then
  local left = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if left then
    redis.call('SET', first, left[1])
  else
    local milliseconds, count = latest(stream):match('(%d+)-(%d+)')
    redis.call('SET', first, milliseconds .. '-' .. tonumber(count) + 1)
  end
end
return gone
"""
)


class RedisEventLog:
    """An EventLog under `prefix`, of about `max_events`: Redis forgets a hundred at a time."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "forkserve:{events}:",
        max_events: int = MAX_EVENTS,
        timeout: float = 1.0,
        health_check_interval: float = 30.0,
    ) -> None:
        """Connecting, writing and reading may each take `timeout` seconds. Raises InvalidRedisUrl."""
        self._redis = ScriptedRedis(url, timeout=timeout, health_check_interval=health_check_interval)
        self._keys = [prefix + "stream", prefix + "first"]
        self._max_events = max_events

    async def append(self, topic: str, kind: str, data: bytes) -> int:
        # twice is better than never, and happens only when a connection breaks at the wrong moment
        return _number(await self._redis.run(APPEND, self._keys, self._max_events, topic, kind, data))

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        events: list[Event] = []
        position = _text(after)
        while True:
            arguments = (topic or "", position, limit - len(events))
            first, latest, found, further = await self._redis.run(READ, self._keys, *arguments)
            events += [Event(_number(entry[0]), entry[1].decode(), entry[2].decode(), entry[3]) for entry in found]
            if further is None or first is None:
                return Page(events, 0 if first is None else _number(first) - 1, _number(latest))
            position = further.decode()

    async def wait(self, after: int) -> None:
        block = int(BLOCK_SECONDS * 1000)
        await self._redis.wait("XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", self._keys[0], _text(after))

    async def prune(self, older_than: float) -> int:
        gone: int = await self._redis.run(PRUNE, self._keys, older_than)
        return gone

    async def close(self) -> None:
        await self._redis.close()


def _number(stream_id: bytes) -> int:
    milliseconds, _, count = stream_id.partition(b"-")
    return (int(milliseconds) << COUNT_BITS) + int(count)


def _text(number: int) -> str:
    return f"{number >> COUNT_BITS}-{number & ((1 << COUNT_BITS) - 1)}"
