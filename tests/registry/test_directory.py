"""The model directory's fingerprint: what changes it, what does not, and what it costs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.estimator import quickest
from registry.store.aliases import promote, rollback
from registry.store.directory import fingerprint, write_whole


def write_version(root: Path, name: str, version: str) -> Path:
    """A version that holds no model, given its name by one rename as `add_version` does."""
    scratch = root / ".new-1" / version
    scratch.mkdir(parents=True)
    (scratch / "manifest.json").write_text(f"{name}/{version}")
    (scratch / "model.joblib").write_bytes(b"")
    (root / name).mkdir(exist_ok=True)
    return scratch.rename(root / name / version)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model with versions 1 and 2, of which 2 has been promoted, and another model with version 1."""
    write_version(tmp_path, "wine", "1")
    write_version(tmp_path, "wine", "2")
    write_version(tmp_path, "beer", "1")
    promote(tmp_path / "wine", "1")
    promote(tmp_path / "wine", "2")
    return tmp_path


CHANGES: dict[str, Callable[[Path], object]] = {
    "a version is added": lambda root: write_version(root, "wine", "3"),
    "a model is added": lambda root: write_version(root, "cider", "1"),
    "a version is promoted": lambda root: promote(root / "wine", "1"),
    "the first version is promoted": lambda root: promote(root / "beer", "1"),
    "a version is rolled back": lambda root: rollback(root / "wine"),
    "the aliases are removed": lambda root: (root / "wine" / "aliases.json").unlink(),
    "a version is removed": lambda root: shutil.rmtree(root / "wine" / "1"),
    "a model is removed": lambda root: shutil.rmtree(root / "beer"),
    "a version is renamed": lambda root: (root / "wine" / "1").rename(root / "wine" / "9"),
    "a manifest is replaced": lambda root: write_whole(root / "wine" / "1" / "manifest.json", b"wine/1"),
    "an artefact is mended in place": lambda root: (root / "wine" / "1" / "model.joblib").write_bytes(b"mended"),
    "an artefact arrives late": lambda root: (root / "wine" / "1" / "late.joblib").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_fingerprint_changes_when(root: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(root)
    change(root)
    assert fingerprint(root) != before


IRRELEVANT: dict[str, Callable[[Path], object]] = {
    "nothing happens": lambda _root: None,
    "a scratch directory is written": lambda root: (root / ".new-2").mkdir(),
    "a candidate is written": lambda root: (root / ".candidate-j.1" / "wine" / "3").mkdir(parents=True),
    "a script is written": lambda root: write_whole(root / "wine" / "train.py", b"pass"),
    "a file lies beside the models": lambda root: (root / "README").write_text("wines"),
    "a pipe lies beside the models": lambda root: os.mkfifo(root / "pipe"),
    "a pipe lies beside the versions": lambda root: os.mkfifo(root / "wine" / "pipe"),
    "a model has no version yet": lambda root: (root / "cider").mkdir(),
}


@pytest.mark.parametrize("change", IRRELEVANT.values(), ids=IRRELEVANT)
def test_fingerprint_stays_when(root: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(root)
    change(root)
    assert fingerprint(root) == before


def test_fingerprint_never_fails(root: Path) -> None:
    (root / "wine" / "3").symlink_to(root / "nowhere")
    (root / "wine" / "1" / "loop").symlink_to("loop")
    os.mkfifo(root / "wine" / "1" / "pipe")
    assert fingerprint(root)
    assert fingerprint(root / "README") == fingerprint(root / "nowhere") == ()


def test_fingerprint_leaves_out_a_file_that_vanishes_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.listdir

    def late(path: str) -> list[str]:
        names = listed(path)
        if path.endswith("wine/1"):
            shutil.rmtree(path)
        return names

    monkeypatch.setattr(os, "listdir", late)
    assert {path.partition("/")[0] for path, *_ in fingerprint(root)} == {"beer", "wine"}
    assert not any(path.startswith("wine/1/") for path, *_ in fingerprint(root))


def test_fingerprint_of_fifty_versions_takes_less_than_a_millisecond(tmp_path: Path) -> None:
    for model in range(10):
        for version in range(5):
            write_version(tmp_path, f"model-{model}", str(version))
    assert quickest(lambda: fingerprint(tmp_path)) < 0.001
