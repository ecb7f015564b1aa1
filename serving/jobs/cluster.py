"""Calls computed by the workers of a Dask cluster, or by the runner where the cluster fails.

Context: a runner computes on one core; some users have many machines. Decision: the calls that a runner would send
to its own executor go to a Dask scheduler instead, several chunks at once; leases, checkpoints and retries of jobs stay
the same. Consequence: a call on a worker cannot be killed. So a call that fails for a reason that may be the cluster's,
such as three workers lost over it, is repeated by the runner, in a process that can be killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import platform
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import distributed
import structlog
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from registry.errors import RegistryError, VersionRefused
from registry.model import LoadedModel
from registry.store.code import CODE, write_files
from registry.store.listing import FILENAME
from registry.store.loader import load_version, read_code, verified_bytes
from registry.store.manifest import encode_manifest, read_manifest
from registry.store.options import LoadOptions
from serving.errors import DeadlineExceeded
from serving.jobs.rows import Backend
from serving.predict.operation import Operation, Verb
from serving.process.executor import CallOutcome, run_call

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 20.0
"""A scheduler that does not answer within this, however busy, counts as unavailable."""

CHECK_SECONDS = 1.0
"""Between checks whether a cluster that has not answered yet has any worker left."""

PAUSE_SECONDS = 30.0
"""After the cluster has failed, until it is tried again."""

RETRIES = 2


LIBRARIES = ("forkserve", "numpy", "scipy", "pandas", "scikit-learn", "numba", "shap", "xgboost", "lightgbm")
"""The libraries on whose version the bits of an answer depend."""


class ClusterFailed(Exception):
    """The cluster failed to compute a call; the message says why."""


class ClusterUnavailable(ClusterFailed):
    """The cluster would fail at the next call, too."""


class CallLost(ClusterUnavailable):
    """The cluster has lost the call, perhaps with the last worker that had the version."""


class Unfit(Exception):
    """A machine would not give the same answers as the sender; the message says why."""


def platform_of_answers() -> dict[str, str]:
    """The architecture of this machine, and the versions of Python and of the installed libraries."""
    found = {"machine": platform.machine(), "python": ".".join(platform.python_version_tuple()[:2])}
    for name in LIBRARIES:
        for distribution in (name, f"{name}-cpu"):  # the same library, by another name
            try:
                found[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


class Parcel:
    """A version on its way to other machines: manifest, artefact, code, and the platform that its answers depend on.

    Compiled models cannot be pickled, so bytes are sent; each process that receives them loads the version once.
    """

    def __init__(
        self, model: LoadedModel, files: Mapping[str, bytes], made_on: Mapping[str, str], *, options: LoadOptions
    ) -> None:
        """`files` are those of the version's directory, by name; `made_on` is `platform_of_answers()` of the sender."""
        self.content_hash = model.content_hash
        self._place = (model.name, model.version)
        self._files = files
        self._made_on = made_on
        self._options = dataclasses.replace(options, compiled=model.compiled)
        self._lock = threading.Lock()
        self._model: LoadedModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_model": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __dask_tokenize__(self) -> bytes:
        """Equal for equal versions, so that a cluster stores each once."""
        return self.content_hash

    def model(self) -> LoadedModel:
        """The version, loaded here. Raises Unfit, VersionRefused."""
        with self._lock:  # a worker may have several threads
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> LoadedModel:
        here = platform_of_answers()
        for name, version in self._made_on.items():
            if here.get(name) != version:
                raise Unfit(f"it has {name} {here.get(name, 'none')}, the runner {version}")
        # it lives as long as the parcel: own code may read its data files at any time
        root = Path(tempfile.mkdtemp(prefix="forkserve-"))
        weakref.finalize(self, shutil.rmtree, root, ignore_errors=True)
        directory = root.joinpath(*self._place)
        write_files(directory, self._files)
        model = load_version(root, directory, self._options)
        if model.compiled != self._options.compiled or model.content_hash != self.content_hash:
            raise Unfit(f"{'/'.join(self._place)} differs from the runner's after it was loaded there")
        return model


def pack_version(root: Path, model: LoadedModel, *, options: LoadOptions) -> Parcel:
    """The version as it was loaded from below `root`. Raises VersionRefused if its files have changed since."""
    directory = root / model.name / model.version
    if read_manifest(directory) != model.manifest:
        raise VersionRefused(directory / FILENAME, "has changed since it was loaded")
    manifest, artefact = model.manifest, model.manifest.artefact
    code = {f"{CODE}/{name}": content for name, content in read_code(root, directory, manifest).items()}
    content = verified_bytes(root, directory / artefact, manifest.sha256)
    files = {FILENAME: encode_manifest(manifest), artefact: content, **code}
    return Parcel(model, files, platform_of_answers(), options=options)


def answer(parcel: Parcel, verb: Verb, payload: bytes) -> CallOutcome:
    """Compute a call on a worker: the answers to a payload of `encode_rows`, or the model's error.

    Raises Unfit, VersionRefused.
    """
    return run_call(Operation(parcel.model(), verb).answer_call, payload)


class Cluster:
    """A Backend that sends calls to a Dask cluster; it connects with the first call."""

    def __init__(
        self, address: str, local: Backend, pack_version: Callable[[LoadedModel], Parcel], *, at_once: int
    ) -> None:
        """`local` computes the calls that the cluster at `address` does not; `pack_version` may raise RegistryError."""
        self.at_once = at_once
        self._address = address
        self._local = local
        self._pack_version = pack_version
        self._client: distributed.Client | None = None
        self._sent: dict[bytes, distributed.Future[Any]] = {}
        self._preparing = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._next_try = 0.0

    async def run(self, operation: Operation, payload: bytes, *, timeout: float) -> bytes:
        """See Backend; on the cluster if possible."""
        if time.monotonic() >= self._next_try and not operation.model.fallback:
            try:
                try:
                    return await self._run(operation, payload, timeout)
                except CallLost:
                    self._sent.pop(operation.model.content_hash, None)  # to send it again
                    return await self._run(operation, payload, timeout)
            except ClusterUnavailable as error:
                await self._rest(str(error))
            except ClusterFailed as error:
                log.warning("Call failed on the cluster, computed here", operation=operation.name, error=str(error))
        async with self._turn:
            return await self._local.run(operation, payload, timeout=timeout)

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        client, self._client = self._client, None
        self._sent.clear()
        if client is not None:
            await client.close()

    async def _rest(self, reason: str) -> None:
        if time.monotonic() >= self._next_try:  # no other call has noticed before
            self._next_try = time.monotonic() + PAUSE_SECONDS
            log.warning("Cluster unavailable, computing here", error=reason)
            await self.close()

    async def _run(self, operation: Operation, payload: bytes, timeout: float) -> bytes:
        async with self._preparing:
            client = await self._connect()
            parcel = await self._send(client, operation.model)
        future = client.submit(answer, parcel, operation.verb, payload, retries=RETRIES, pure=False)
        try:
            outcome = await _outcome(client, future, timeout)
        finally:
            future.release()  # a waiting call is dropped; a running one ends on its worker and is forgotten
        return outcome.result()

    async def _connect(self) -> distributed.Client:
        if self._client is not None:
            return self._client
        if time.monotonic() < self._next_try:  # another call has failed while this one waited
            raise ClusterUnavailable("it has just failed")
        client = distributed.Client(
            self._address, asynchronous=True, timeout=CONNECT_SECONDS, set_as_default=False, name="forkserve"
        )
        try:
            await client
            workers = await _count_workers(client)
        except BaseException as error:
            await client.close()
            if isinstance(error, Exception) and not isinstance(error, ClusterUnavailable):
                raise ClusterUnavailable(_describe(error)) from error
            raise
        log.info("Cluster connected", workers=workers)
        self._client = client
        return client

    async def _send(self, client: distributed.Client, model: LoadedModel) -> distributed.Future[Any]:
        """Send the version to every present worker, from which later ones get it."""
        sent = self._sent.get(model.content_hash)
        if sent is None:
            try:
                parcel = self._pack_version(model)
            except RegistryError as error:
                raise ClusterFailed(str(error)) from error
            try:
                sent = await client.scatter(parcel, broadcast=True, timeout=ANSWER_SECONDS)
            except Exception as error:
                # whatever it is, it is the cluster's fault: no worker, no connection, no module of ours
                raise ClusterUnavailable(_describe(error)) from error
            self._sent[model.content_hash] = sent
        return sent


async def _outcome(client: distributed.Client, future: distributed.Future[Any], timeout: float) -> CallOutcome:
    """Wait for a call. Raises DeadlineExceeded, ClusterFailed."""
    # a task of its own: Dask cancels calls that it has lost, which must not look like our own cancellation
    waiting: asyncio.Future[CallOutcome] = asyncio.ensure_future(future.result())
    deadline = time.monotonic() + timeout
    try:
        while not (await asyncio.wait({waiting}, timeout=min(CHECK_SECONDS, timeout)))[0]:
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
        raise ClusterUnavailable(_describe(error)) from error
    return waiting.result()


async def _count_workers(client: distributed.Client) -> int:
    """The number of workers. Raises ClusterUnavailable if there are none."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            workers = len(await client.nthreads())
    except Exception as error:
        raise ClusterUnavailable(_describe(error)) from error
    if not workers:
        raise ClusterUnavailable("it has no workers")
    return workers


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
