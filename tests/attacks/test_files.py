"""The model directory as an attack surface: files that are no files, without end, nested, or exchanged meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from harness.service import ROOT
from registry.errors import CannotRead, VersionRefused
from registry.formats.artefact import open_artefact
from registry.model import LoadedModel
from registry.registry import Registry
from registry.store import loader
from registry.store.aliases import MAX_ALIASES_BYTES
from registry.store.listing import MAX_MANIFEST_BYTES, list_versions
from registry.store.loader import load_version, verified_bytes
from registry.store.manifest import read_manifest
from registry.store.reload import renew_registry
from serving.process.apart import nothing
from serving.process.child import limit_numeric_threads
from serving.process.trial import Trial, try_first
from serving.training.job import LAST_FILENAME, read_last

TOO_LARGE = max(MAX_MANIFEST_BYTES, MAX_ALIASES_BYTES) + 1
NESTED = b'{"example":' * 100_000 + b"1" + b"}" * 100_000

Spoil = Callable[[Path], object]


@pytest.fixture
def root(few_models: Path, tmp_path: Path) -> Path:
    """A model directory of its own with two models."""
    return Path(shutil.copytree(few_models, tmp_path / "models"))


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)  # a whole path may be too long for a socket


def be_endless(path: Path) -> None:
    path.touch()
    os.truncate(path, TOO_LARGE)


NO_FILES: dict[str, tuple[Spoil, str]] = {
    "pipe": (os.mkfifo, "is not a file"),
    "directory": (Path.mkdir, "is not a file"),
    "socket": (listen, "is not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a link"),
    "link": (lambda path: path.symlink_to("/proc/self/environ"), "is a link"),
    "too large": (be_endless, "is larger than "),
    "nested": (lambda path: path.write_bytes(NESTED), ""),
    "empty": (lambda path: path.write_bytes(b""), ": Input data was truncated"),
    "no text": (lambda path: path.write_bytes(b'{"live":"\xff"}'), ": "),
}


def spoil(path: Path, how: str) -> str:
    """Put something else in the place of a file; the reason that is then to be given."""
    path.unlink(missing_ok=True)
    put, reason = NO_FILES[how]
    put(path)
    return reason


def renew(root: Path, old: Registry | None = None) -> tuple[Registry, tuple[str, ...]]:
    return renew_registry(old or Registry([]), root, partial(load_version, root), selected="all")


@pytest.mark.parametrize("how", NO_FILES)
@pytest.mark.parametrize("file", ["wine/aliases.json", "wine/1/manifest.json"])
def test_what_is_no_plain_small_file_is_the_refusal_of_that_model_alone(root: Path, file: str, how: str) -> None:
    reason = spoil(root / file, how)
    registry, (refused,) = renew(root)
    assert refused.startswith(f"{file}: ")
    assert reason in refused
    assert [model.name for model in registry] == ["diabetes"]
    assert any(reason in listed.fault for listed in list_versions(root) if listed.model == "wine")


def test_what_is_nested_100_000_deep_is_named(root: Path) -> None:
    spoil(root / "wine" / "1" / "manifest.json", "nested")
    with pytest.raises(VersionRefused, match="is not a manifest: it is nested too deep"):
        read_manifest(root / "wine" / "1")


@pytest.mark.parametrize("file", ["wine/aliases.json", "wine/1/manifest.json"])
def test_model_that_serves_goes_on_when_its_file_is_spoilt(root: Path, file: str) -> None:
    before, _ = renew(root)
    spoil(root / file, "nested")
    after, (refused,) = renew(root, before)
    assert refused.startswith(f"{file}: ")
    assert after.get("wine") is before.get("wine")


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), OSError("gone"), KeyError("x")])
def test_any_error_of_a_version_is_its_refusal_alone(root: Path, error: Exception) -> None:
    def load(directory: Path) -> LoadedModel:
        if directory.parent.name == "wine":
            raise error
        return load_version(root, directory)

    registry, (refused,) = renew_registry(Registry([]), root, load, selected="all")
    assert refused.startswith(f"wine/1: does not load: {type(error).__name__}")
    assert [model.name for model in registry] == ["diabetes"]


def test_directory_that_cannot_be_read_is_the_refusal_of_that_model_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = renew(root)
    plain = Path.iterdir

    def iterdir(path: Path) -> object:
        if path == root / "wine":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    after, (refused,) = renew(root, before)
    assert refused == "wine: Permission denied"
    assert after.get("wine") is before.get("wine")


def test_artefact_beyond_the_memory_that_there_is_is_not_read(root: Path) -> None:
    path = root / "wine" / "1" / "model.joblib"
    os.truncate(path, 1 << 42)  # takes no place on the disk
    with pytest.raises(VersionRefused, match="needs more memory than there is"):
        load_version(root, path.parent)


def test_artefact_that_grows_while_it_is_read_is_the_one_that_was_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, manifest = root / "wine" / "1" / "model.joblib", read_manifest(root / "wine" / "1")
    content, real = path.read_bytes(), os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        state = real(descriptor)
        path.write_bytes(content + b"more")
        return state

    monkeypatch.setattr("registry.store.directory.os.fstat", fstat)
    assert verified_bytes(root, path, manifest.sha256) == content


@pytest.mark.parametrize("how", ["pipe", "directory", "socket", "device", "too large", "nested"])
def test_file_about_the_last_training_stops_nothing(root: Path, how: str) -> None:
    spoil(root / "wine" / LAST_FILENAME, how)
    assert read_last(root / "wine") is None


def test_file_to_be_added_may_be_a_link_but_no_pipe(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root / "wine" / "1" / "model.joblib")
    assert open_artefact(tmp_path / "link").format == "joblib"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotRead, match="is not a file"):
        open_artefact(tmp_path / "pipe")


def exchange(root: Path) -> None:
    """Replace a version by another one that is complete."""
    (root / "wine" / "1").rename(root / "wine" / ".gone")
    other = Path(shutil.copytree(root / "diabetes" / "1", root / "wine" / "1"))
    text = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(text.replace('"name": "diabetes"', '"name": "wine"'))


def load_what_was_tried(root: str) -> None:
    """In a process with one thread: the version is exchanged between its trial and its loading."""
    home, executed = os.getpid(), []

    class Exchanging(Trial):
        def refusal(self, seconds: float, meanwhile: Callable[[], None] = nothing) -> VersionRefused | None:
            refused = super().refusal(seconds, meanwhile)
            exchange(Path(root))
            return refused

    def load_artefact(*arguments: object) -> object:
        if os.getpid() == home:
            executed.append(arguments)
        return plain(*cast("Any", arguments))

    plain, changed = loader.load_artefact, cast("Any", loader)
    changed.load_artefact = load_artefact
    trial = sys.modules[Trial.__module__]
    trial.Trial = Exchanging  # type: ignore[attr-defined]
    load = try_first(partial(load_version, Path(root)), seconds=60, read=read_manifest)
    try:
        load(Path(root) / "wine" / "1")
    except VersionRefused as error:
        print(error.reason, len(executed))  # noqa: T201 - to the test


def test_only_what_was_tried_is_loaded(root: Path) -> None:
    said = play(f"load_what_was_tried({str(root)!r})")
    assert (said[:11], said[-2:]) == ("has sha256 ", " 0"), said


def try_surrogates() -> None:
    def load(_directory: Path) -> LoadedModel:
        raise ValueError("half a \udc80 character")

    refusal = Trial(load, Path("/models/odd/1")).refusal(60)
    print(refusal)  # noqa: T201 - to the test


def test_text_that_utf8_cannot_hold_still_says_why() -> None:
    assert play("try_surrogates()") == "/models/odd/1: ValueError: half a \\udc80 character"
    refused = VersionRefused(Path("/models/\udc80/1"), "half a \udc80 character")
    assert str(refused).encode() == b"/models/\\udc80/1: half a \\udc80 character"
    assert refused.reason == "half a \\udc80 character"


def play(call: str) -> str:
    """What a call in a process of its own prints; a trial is forked by a process with one thread."""
    code = f"import {__name__} as here; here.{call}"
    environ = dict(os.environ)
    limit_numeric_threads(environ)
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_files_that_a_service_makes_are_private(root: Path, tmp_path: Path) -> None:
    code = (
        "import main; app = main.web();"
        "from registry.store.aliases import promote; from pathlib import Path; promote(Path({!r}), '1');"
        "Path({!r}).mkdir()"
    ).format(str(root / "wine"), str(tmp_path / "made"))
    environ = {**os.environ, "MODEL_DIR": str(root), "DATA_DIR": str(tmp_path / "data")}
    limit_numeric_threads(environ)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, check=True, capture_output=True, timeout=60)
    assert (root / "wine" / "aliases.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
