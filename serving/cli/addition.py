"""Adds a version from a process apart, tries it as a reload would, and has a running service take it over."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from registry.errors import CannotAdd, RegistryError
from registry.store.directory import ALIASES_FILE
from serving.cli.client import RemoteFault, RemoteService
from serving.cli.command import say
from serving.settings import Settings

WRITE_TIMES = 10
"""Writing a version may take as many times RELOAD_TIMEOUT_SECONDS: the whole table is predicted, too."""

LOOK_SECONDS = 0.2
"""Between two looks at the service: it tells no client when it has reloaded."""

SCRATCH = ".scratch"


def add_apart(write: Callable[[str, Path], None], name: str, version: str | None, settings: Settings) -> Path:
    """Have `write` write a version, of which it is given the name and the root; its directory once it is added.

    `write` runs in a forked process: an artefact that crashes, hangs, exits or starts threads harms nothing. Then the
    version is tried in another one, in which nothing of it has run, as a reload would. What `write` prints is shown
    when it has succeeded. Raises CannotAdd, and then nothing is left behind.
    """
    from registry.store.add import new_directory
    from registry.store.loader import load_version
    from serving.process.trial import can_try, try_version

    directory = new_directory(settings.model_dir, name, version)
    aside = settings.model_dir / f".adding-{os.getpid()}"
    candidate = aside / name / directory.name
    said, is_new = "", not settings.model_dir.exists()
    try:
        if not can_try():  # not on Linux
            write(directory.name, aside)
        else:
            (aside / SCRATCH).mkdir(parents=True)
            said = _write_apart(partial(write, directory.name, aside), aside / SCRATCH, settings.reload_timeout_seconds)
            load = partial(load_version, aside, options=settings.load_options)
            reason = try_version(load, candidate, seconds=settings.reload_timeout_seconds)
            if reason is not None:
                raise CannotAdd(f"a service could not serve it: {reason}")
        publish(candidate, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                settings.model_dir.rmdir()
    say(f"added {name} version {directory.name} in {directory}")
    say(said, end="")
    return directory


def publish(candidate: Path, directory: Path) -> None:
    """Move a version, and the files beside it, to where it is served from. Raises CannotAdd."""
    directory.parent.mkdir(exist_ok=True)
    try:
        candidate.rename(directory)
    except OSError as error:
        raise CannotAdd(f"{directory} was added meanwhile; a version never changes") from error
    for beside in candidate.parent.iterdir():
        beside.replace(directory.parent / beside.name)


def _write_apart(write: Callable[[], None], scratch: Path, seconds: float) -> str:
    """What it printed; its temporary files are below `scratch`. Raises CannotAdd."""
    from serving.process.apart import Apart, EndedBadly, told_fault

    printed: list[bytes] = []
    try:
        verdict = Apart(partial(_write, write, scratch), "add").wait(WRITE_TIMES * seconds, printed.append)
    except EndedBadly as error:
        say(b"".join(printed).decode(errors="replace"), end="")
        raise CannotAdd(f"the model cannot be added: {error}") from None
    if (fault := told_fault(verdict)) is not None:
        raise CannotAdd(fault)
    return b"".join(printed).decode(errors="replace")


def _write(write: Callable[[], None], scratch: Path, writing: int) -> None:
    from serving.process.apart import tell

    tempfile.tempdir = str(scratch)  # the process may end without a chance to remove anything
    fault = None
    try:
        write()
    except RegistryError as error:
        fault = str(error)
    tell(writing, fault)


def await_served(settings: Settings, name: str, version: str) -> str:
    """Have the running service of these settings take a version over; a sentence, once it serves it.

    Raises RemoteFault when it is not reached, refuses the version, or takes too long.
    """
    with RemoteService.of(None, settings) as service:
        _ask_to_reload(service, settings)
        deadline = time.monotonic() + 2 * settings.reload_timeout_seconds
        while time.monotonic() < deadline:
            answer = service.ask("GET", f"/v1/models/{name}/versions/{version}")
            if answer.status_code == 200:
                live = service.get(f"/v1/models/{name}")["version"]
                then = "live" if live == version else f"version {live} stays live"
                return f"{name} version {version} is served at {service.address}; {then}"
            if refused := _refusal(service.get("/health"), name, version):
                raise RemoteFault(f"the service at {service.address} refuses it: {refused}")
            time.sleep(LOOK_SECONDS)
        raise RemoteFault(f"the service at {service.address} does not serve it; does it have the same MODEL_DIR?")


def _ask_to_reload(service: RemoteService, settings: Settings) -> None:
    """Raises RemoteFault where nothing would make the service reload."""
    try:
        status = service.ask("POST", "/api/admin/models:reload", admin=True).status_code
    except RemoteFault as error:
        raise RemoteFault(f"no service is reached ({error}); start it, or set HOST and PORT as it has them") from None
    if status == 501:
        raise RemoteFault(f"the service at {service.address} does not preload its models: restart it")
    if status in (401, 404) and not settings.watch_models:
        raise RemoteFault(f"the service at {service.address} does not reload for us: ADMIN_TOKEN is not the one it has")


def _refusal(health: dict[str, Any], name: str, version: str) -> str | None:
    about = (f"{name}/{version}/", f"{name}/{version}:", f"{name}/{ALIASES_FILE}")
    return next((str(line) for line in health["refused"] if line.startswith(about)), None)
