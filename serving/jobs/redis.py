"""Jobs in Redis, shared by all instances; what happens in the server is in `redis.lua`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, cast

import msgspec

from serving.errors import JobNotFound, QueueFull, StoreUnavailable
from serving.events.log import MAX_EVENTS
from serving.events.redis import KEYS as EVENT_KEYS
from serving.events.redis import lua as event_lua
from serving.jobs.job import (
    Backoff,
    Counts,
    Firing,
    Job,
    JobRequest,
    Lease,
    ScheduleRecord,
    job_from,
    new_id,
    printable,
    record_from,
)
from serving.jobs.store import (
    KEPT_FIELDS,
    LOST,
    PRUNE_AT_ONCE,
    RETRY_AFTER_SECONDS,
    TOO_MANY_BYTES,
    TOO_MANY_BYTES_OF_ACCOUNT,
    TOO_MANY_JOBS,
    TOO_MANY_OF_ACCOUNT,
    QueueLimits,
)
from serving.storage.redis import ScriptedRedis
from serving.storage.seal import Seal, place_of
from serving.storage.statements import statements

_lua = statements(__file__, "redis.lua")
KEYS = ["forkserve:{jobs}:", *EVENT_KEYS]
FULL = {
    -1: TOO_MANY_JOBS,
    -2: TOO_MANY_BYTES,
    -3: TOO_MANY_OF_ACCOUNT,
    -4: TOO_MANY_BYTES_OF_ACCOUNT,
}
"""What `submit` says when there is no room."""
RECOUNT_SECONDS = 10
"""Between two counts of all that is waiting: an older release, which runs beside this one, does not keep them."""
ROOM_BYTES = 1 << 20
"""Less free memory than this is a full server to a probe, where nothing is evicted."""
SEEN_SECONDS = 600
"""Another service counts as using the same Redis for so long after it has looked for risks."""
STRANGERS = (
    "another service over this Redis signs with another secret: neither does the jobs of the other; give all the same "
    "SECRET_KEY, or ADMIN_TOKEN"
)
KEYS_OF_JOBS = ("idempotency_key", "unique_key", "mutex")
STATES = ("queued", "running", "done", "failed", "cancelled")
SIGNATURE = "signature"
NOT_SIGNED = "its record was not signed by this service"
REFUSED_WHEN_FULL = ("submit", "fire", "probe")


class RedisJobStore:
    """A JobStore of all instances; its events are in the RedisEventLog of the same server."""

    def __init__(
        self,
        url: str,
        *,
        limits: QueueLimits | None = None,
        backoff: Backoff | None = None,
        timeout: float = 1.0,
        health_check_interval: float = 30.0,
        seal: Seal | None = None,
    ) -> None:
        """Connecting, writing and reading may each take `timeout` seconds. Raises InvalidRedisUrl."""
        self._redis = ScriptedRedis(url, timeout=timeout, health_check_interval=health_check_interval)
        limits = limits or QueueLimits()
        self._limits = (limits.jobs, limits.bytes, *limits.of_account())
        self._backoff = backoff or Backoff()
        self._seal = seal or Seal()

    async def submit(self, request: JobRequest) -> Job:
        arguments = self._request(request)
        job = await self._submit(arguments)
        keys = {kind: key for kind in KEYS_OF_JOBS if (key := getattr(request, kind))}
        if job is None or (keys and all(getattr(job, kind) != key for kind, key in keys.items())):
            # the keys lead to no job of ours
            await self._run("detach", *(part for pair in keys.items() for part in pair))
            job = await self._submit(arguments)
        if job is None:
            raise StoreUnavailable("Redis holds something else under the keys of jobs")
        return job

    async def _submit(self, arguments: list[Any]) -> Job | None:
        outcome, found = await self._run("submit", *arguments)
        if outcome < 0:
            raise QueueFull(RETRY_AFTER_SECONDS, FULL[outcome])
        return self._job(found)

    def _request(self, request: JobRequest) -> list[Any]:
        """Return it as arguments of a script; the id is made here, so that a repeated submission is one job."""
        job_id = new_id()
        given = {name: value for name in KEPT_FIELDS if (value := getattr(request, name))}
        given = {name: value if isinstance(value, bytes) else str(value).encode() for name, value in given.items()}
        given["chunks"] = str(len(request.inputs)).encode()
        given[SIGNATURE] = self._seal.sign(place_of("job", job_id), _signed(given)).hex().encode()
        fields = [part for pair in given.items() for part in pair]
        inputs = [self._seal.close(place_of("input", job_id, chunk), data) for chunk, data in enumerate(request.inputs)]
        return [job_id, *self._limits, request.size, request.delay, len(fields), *fields, *inputs]

    async def claim(self, owner: str, lease_seconds: float, operations: Sequence[str]) -> Job | None:
        longest = self._backoff.longest
        found = await self._run("claim", owner, lease_seconds, longest, *operations, safe=False)
        job = self._job(found)
        if found and job is None:
            job_id = dict(_pairs(found)).get(b"id", b"")
            await self._run("fail", job_id, owner, NOT_SIGNED, 1, self._backoff.first, longest, 0)
        return job

    async def heartbeat(self, job_id: str, owner: str, lease_seconds: float, progress: float = 0.0) -> Lease:
        return _lease(await self._run("heartbeat", job_id, owner, lease_seconds, progress))

    async def checkpoint(self, job_id: str, owner: str, lease_seconds: float, chunk: int, result: bytes) -> Lease:
        sealed = self._seal.close(place_of("result", job_id, chunk), result)
        answer = await self._run("checkpoint", job_id, owner, lease_seconds, chunk, sealed)
        if answer == b"no such chunk":
            raise ValueError(f"the job has no chunk {chunk}")
        return _lease(answer)

    async def finish(self, job_id: str, owner: str) -> Job | None:
        answer = await self._run("finish", job_id, owner)
        if isinstance(answer, int):
            raise ValueError(f"{answer} chunks of the job are missing")  # noqa: TRY004 - an answer, no argument
        return self._job(answer)

    async def fail(self, job_id: str, owner: str, error: str, *, permanent: bool = False) -> Job | None:
        share = random.random()  # noqa: S311 - spreads retries
        backoff = (self._backoff.first, self._backoff.longest, share)
        return self._job(await self._run("fail", job_id, owner, printable(error), int(permanent), *backoff))

    async def release(self, job_id: str, owner: str) -> Job | None:
        return self._job(await self._run("release", job_id, owner))

    async def cancel(self, job_id: str) -> Job:
        return self._existing(job_id, await self._run("cancel", job_id))

    async def get(self, job_id: str) -> Job:
        return self._existing(job_id, await self._run("get", job_id))

    async def input(self, job_id: str, chunk: int) -> bytes:
        data = self._open("input", job_id, chunk, await self._run("input", job_id, chunk))
        if data is None:
            raise JobNotFound("the input has been deleted")
        return data

    async def missing(self, job_id: str) -> list[int]:
        chunks: list[int] | None = await self._run("missing", job_id)
        if chunks is None:
            raise JobNotFound
        return chunks

    async def result(self, job_id: str, chunk: int) -> bytes | None:
        return self._open("result", job_id, chunk, await self._run("result", job_id, chunk))

    async def counts(self) -> Counts:
        states, waited = await self._run("counts")
        found = {name: int(count) for name, count in _pairs(states) if count.isdigit()}
        by_state = {state: found.get(state.encode(), 0) for state in STATES}
        return Counts(**by_state, oldest_queued_seconds=float(waited))

    async def probe(self) -> None:
        await self._run("probe", ROOM_BYTES)

    async def risk(self) -> str | None:
        policy, has_strangers = await self._run("risk", SEEN_SECONDS, *self._seal.marks)
        risks = [STRANGERS] if has_strangers else []
        if policy.startswith(b"allkeys"):
            risks.append(f"maxmemory-policy is {policy.decode()}: Redis may drop jobs; use noeviction or volatile-lru")
        return "; ".join(risks) or None

    async def prune(self, older_than: float, keep: int, keep_bytes: int) -> int:
        removed: int = await self._run("prune", older_than, keep, keep_bytes, PRUNE_AT_ONCE)
        return removed

    async def delete_of(self, client: str) -> list[str]:
        return [job_id.decode() for job_id in await self._run("delete_of", client)]

    async def schedules(self) -> Mapping[str, ScheduleRecord]:
        return records_from(await self._run("schedules"))

    async def fire(self, firing: Firing) -> ScheduleRecord | None:
        seen, request = "" if firing.seen is None else firing.seen, firing.request
        counts = [part for name, count in asdict(firing.counts).items() if count for part in (name, count)]
        head = [firing.schedule, seen, firing.upto, request.idempotency_key if request else "", len(counts), *counts]
        answer = await self._run("fire", *head, *(self._request(request) if request else ()))
        if isinstance(answer, int):
            raise QueueFull(RETRY_AFTER_SECONDS, FULL[answer])
        return None if answer is None else _record(answer)

    async def pause(self, schedule: str, *, paused: bool) -> ScheduleRecord:
        record = _record(await self._run("pause", schedule, int(paused)))
        if record is None:
            raise StoreUnavailable("the record of the schedule is damaged")
        return record

    def _job(self, flat: Sequence[bytes] | None) -> Job | None:
        """The job of a record, if there is one that was signed by a service with our secret."""
        if not flat:
            return None
        given = {name.decode(errors="replace"): value for name, value in _pairs(flat)}
        try:
            place, signature = place_of("job", given["id"].decode()), bytes.fromhex(given.get(SIGNATURE, b"").decode())
            if self._seal.verify(place, _signed(given), signature):
                fields = {name: value if name == "parameters" else value.decode() for name, value in given.items()}
                return job_from({"model": "", "version": "", "parameters": b"", **fields})
        except (KeyError, ValueError, msgspec.ValidationError):
            pass
        self._seal.report("jobs")
        return None

    def _existing(self, job_id: str, flat: Sequence[bytes]) -> Job:
        job = self._job(flat)
        if job is None or job.id != job_id:
            raise JobNotFound
        return job

    def _open(self, kind: str, job_id: str, chunk: int, sealed: bytes | None) -> bytes | None:
        data = None if sealed is None else self._seal.open(place_of(kind, job_id, chunk), sealed)
        if data is None and sealed is not None:
            self._seal.report(f"{kind}s of jobs")
        return data

    async def close(self) -> None:
        await self._redis.close()

    async def _run(self, name: str, *arguments: bytes | str | float, safe: bool = True) -> Any:
        return await self._redis.run(_script(name), KEYS, *arguments, safe=safe)


@cache
def _script(name: str) -> str:
    flags = "" if name in REFUSED_WHEN_FULL else "#!lua flags=allow-oom\n"
    constants = f"local max_events, lost, recount_seconds = {MAX_EVENTS}, '{LOST}', {RECOUNT_SECONDS}\n"
    return flags + constants + event_lua("appending") + _lua("common") + _lua(name)


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _signed(fields: Mapping[str, bytes]) -> bytes:
    """The part of a job's record that a service writes, and that never changes."""
    return msgspec.msgpack.encode([(name, fields[name]) for name in (*KEPT_FIELDS, "chunks") if name in fields])


def records_from(flat: Sequence[Any]) -> Mapping[str, ScheduleRecord]:
    """The records of schedules by name, from what a script returns: name, fields, name, fields, ..."""
    found = {name.decode(errors="replace"): _record(fields) for name, fields in _pairs(flat)}
    return {name: record for name, record in found.items() if record is not None}


def _record(flat: Sequence[bytes]) -> ScheduleRecord | None:
    """The record of a schedule; None if something else is there."""
    try:
        return record_from({name.decode(): value.decode() for name, value in _pairs(flat)})
    except (ValueError, msgspec.ValidationError):
        return None


def _lease(answer: bytes) -> Lease:
    return cast("Lease", answer.decode())
