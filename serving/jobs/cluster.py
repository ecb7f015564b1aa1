"""Calls computed by the workers of a Dask cluster; what the cluster cannot do is computed here.

Context: a runner computes on one core; some have many machines. Decision: the parts of a chunk that a runner would ask
its own executor for go to a Dask scheduler instead, several chunks at once; leases, checkpoints and retries of jobs
stay as they are. Consequence: a call on a worker cannot be killed as one here can. So whatever fails in a way that
might be the cluster's fault, a worker lost three times over one call included, is done again here, where it can.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import distributed
import structlog
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from registry.errors import RegistryError
from registry.model import LoadedModel
from serving.errors import DeadlineExceeded
from serving.jobs.backend import Backend
from serving.jobs.parcel import Parcel, answer
from serving.predict.operation import Operation
from serving.process.executor import raise_failure
from serving.process.wire import CallOutcome
from serving.telemetry import logs

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 20.0
"""A scheduler that is silent for so long, however busy, is taken for gone."""

LOOK_SECONDS = 1.0
"""Between looks whether a cluster that has not answered yet has any worker left."""

REST_SECONDS = 30.0
"""After the cluster has failed, before it is tried again."""

RETRIES = 2


class ClusterFailed(Exception):
    """The cluster did not do a call; the message says why."""


class ClusterAway(ClusterFailed):
    """Nor would it do the next one."""


class CallLost(ClusterAway):
    """It has forgotten the call, perhaps because the last worker that had the version is gone."""


class Cluster:
    """A Backend that sends calls to a Dask cluster; connects on the runner's event loop when it is first asked."""

    def __init__(
        self, address: str, local: Backend, pack_version: Callable[[LoadedModel], Parcel], *, at_once: int
    ) -> None:
        """`local` computes what the cluster at `address` does not; `pack_version` may raise RegistryError."""
        self.at_once = at_once
        self._address = address
        self._local = local
        self._pack_version = pack_version
        self._client: distributed.Client | None = None
        self._sent: dict[bytes, distributed.Future[Any]] = {}
        self._preparing = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._next_try = 0.0
        # its lines would have another form than all others
        logging.getLogger("distributed").handlers = [logs.json_handler()]

    async def run(self, operation: Operation, payload: bytes, *, timeout: float) -> bytes:
        """As Backend says; on the cluster, if that can do it."""
        if time.monotonic() >= self._next_try and not operation.model.fallback:
            try:
                try:
                    return await self._run(operation, payload, timeout)
                except CallLost:
                    self._sent.pop(operation.model.content_hash, None)  # to be sent again
                    return await self._run(operation, payload, timeout)
            except ClusterAway as error:
                await self._rest(str(error))
            except ClusterFailed as error:
                log.warning("Cluster failed at a call, done here", operation=operation.name, error=str(error))
        async with self._turn:
            return await self._local.run(operation, payload, timeout=timeout)

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        client, self._client = self._client, None
        self._sent.clear()
        if client is not None:
            await client.close()

    async def _rest(self, reason: str) -> None:
        if time.monotonic() >= self._next_try:  # no other call has found out before
            self._next_try = time.monotonic() + REST_SECONDS
            log.warning("Cluster is out of reach, computing here", error=reason)
            await self.close()

    async def _run(self, operation: Operation, payload: bytes, timeout: float) -> bytes:
        async with self._preparing:
            client = await self._connect()
            parcel = await self._send(client, operation.model)
        future = client.submit(answer, parcel, operation.verb, payload, retries=RETRIES, pure=False)
        try:
            outcome, result = await _outcome(client, future, timeout)
        finally:
            future.release()  # what waits is dropped; what runs there comes to its end and is forgotten
        raise_failure(outcome)
        return result

    async def _connect(self) -> distributed.Client:
        if self._client is not None:
            return self._client
        if time.monotonic() < self._next_try:  # a call that has waited for its turn
            raise ClusterAway("it has just failed")
        client = distributed.Client(
            self._address, asynchronous=True, timeout=CONNECT_SECONDS, set_as_default=False, name="forkserve"
        )
        try:
            await client
            workers = await _count_workers(client)
        except BaseException as error:
            await client.close()
            if isinstance(error, Exception) and not isinstance(error, ClusterAway):
                raise ClusterAway(_describe(error)) from error
            raise
        log.info("Cluster is within reach", workers=workers)
        self._client = client
        return client

    async def _send(self, client: distributed.Client, model: LoadedModel) -> distributed.Future[Any]:
        """The version on the cluster: on every worker that there is now; others get it from these."""
        sent = self._sent.get(model.content_hash)
        if sent is None:
            try:
                parcel = self._pack_version(model)
            except RegistryError as error:
                raise ClusterFailed(str(error)) from error
            try:
                sent = await client.scatter(parcel, broadcast=True, timeout=ANSWER_SECONDS)
            except Exception as error:
                # whatever it is, it is the cluster's: no worker, no connection, no module of ours
                raise ClusterAway(_describe(error)) from error
            self._sent[model.content_hash] = sent
        return sent


async def _outcome(
    client: distributed.Client, future: distributed.Future[Any], timeout: float
) -> tuple[CallOutcome, bytes]:
    """Raises DeadlineExceeded, ClusterFailed."""
    # a task of its own: Dask cancels what it has lost, which is not to be taken for a cancellation of ours
    waiting = asyncio.ensure_future(_result(future))
    deadline = time.monotonic() + timeout
    try:
        while not (await asyncio.wait({waiting}, timeout=min(LOOK_SECONDS, timeout)))[0]:
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"the computation took longer than {timeout:g} s")
            await _count_workers(client)
    finally:
        waiting.cancel()
    error = asyncio.CancelledError() if waiting.cancelled() else waiting.exception()
    if isinstance(error, FutureCancelledError | asyncio.CancelledError):
        raise CallLost(_describe(error)) from error
    if isinstance(error, KilledWorker):
        raise ClusterFailed(_describe(error)) from error
    if error is not None:
        raise ClusterAway(_describe(error)) from error
    return waiting.result()


async def _result(future: distributed.Future[Any]) -> tuple[CallOutcome, bytes]:
    outcome: tuple[CallOutcome, bytes] = await future.result()
    return outcome


async def _count_workers(client: distributed.Client) -> int:
    """Raises ClusterAway when there is none."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            workers = len(await client.nthreads())
    except Exception as error:
        raise ClusterAway(_describe(error)) from error
    if not workers:
        raise ClusterAway("it has no workers")
    return workers


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
