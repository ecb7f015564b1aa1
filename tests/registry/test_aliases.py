"""Live and previous versions: what is read, what is changed, and what is never half-written."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
from datetime import datetime
from multiprocessing.synchronize import Event
from pathlib import Path

import msgspec
import pytest

from registry.errors import ModelNotFound, VersionNotFound, VersionRefused
from registry.registry import load_one, load_registry
from registry.store.aliases import Aliases, current, promote, read_aliases, remove, rollback
from registry.store.directory import ALIASES_FILE
from registry.store.history import HISTORY_FILE, MAX_CHANGES, MAX_HISTORY_BYTES, VersionChange, note, read_changes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory of a model with three versions that hold nothing."""
    for version in ("1", "2", "10"):
        (tmp_path / "wine" / version).mkdir(parents=True)
    return tmp_path / "wine"


@pytest.fixture
def root(models: Path, tmp_path: Path) -> Path:
    """A model directory with one model in two versions."""
    for version in ("1", "2"):
        directory = tmp_path / "models" / "wine" / version
        shutil.copytree(models / "wine" / "1", directory)
        manifest = (directory / "manifest.json").read_text()
        (directory / "manifest.json").write_text(manifest.replace('"version": "1"', f'"version": "{version}"'))
    return tmp_path / "models"


@pytest.mark.parametrize("name", [f"wine/{ALIASES_FILE}", "wine/1/manifest.json"])
def test_a_pipe_is_refused_and_not_waited_for(root: Path, name: str) -> None:
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    with pytest.raises(VersionRefused, match=rf"{name}: is not a file"):
        load_registry(root)


def test_without_a_file_the_newest_version_is_live(model: Path) -> None:
    assert current(model) == Aliases("10", "2")
    assert read_aliases(model, ["1"]) == Aliases("1", None)


def test_promoted_version_is_live_and_the_one_before_is_previous(model: Path) -> None:
    assert promote(model, "1") == current(model) == Aliases("1", "10")
    assert promote(model, "2") == current(model) == Aliases("2", "1")


def test_promoting_what_is_live_keeps_the_previous_version(model: Path) -> None:
    promote(model, "2")
    assert promote(model, "2") == current(model) == Aliases("2", "10")


def test_promoted_version_stays_live_when_a_newer_one_is_added(model: Path) -> None:
    promote(model, "10")
    (model / "11").mkdir()
    assert current(model).live == "10"


def test_rollback_goes_back_and_forth(model: Path) -> None:
    assert rollback(model) == current(model) == Aliases("2", "10")
    assert rollback(model) == current(model) == Aliases("10", "2")


def test_there_is_no_way_back_from_the_only_version(model: Path) -> None:
    for version in ("1", "2"):
        (model / version).rmdir()
    with pytest.raises(VersionNotFound, match="no previous version"):
        rollback(model)


def test_previous_version_that_was_removed_is_none(model: Path) -> None:
    promote(model, "1")
    (model / "10").rmdir()
    assert current(model) == Aliases("1", None)


@pytest.mark.parametrize("version", ["3", "", "..", "../wine/1", "aliases.json"])
def test_version_that_is_not_there_cannot_be_promoted(model: Path, version: str) -> None:
    with pytest.raises(VersionNotFound):
        promote(model, version)
    assert not (model / ALIASES_FILE).exists()


def test_model_that_is_not_there_cannot_be_promoted(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        promote(tmp_path / "none", "1")


DAMAGED = {
    "nothing": b"",
    "cut off": b'{"live": "1',
    "no text": b'{"live": "\xff"}',
    "a list": b'["1"]',
    "a number for a version": b'{"live": 1}',
    "no live version": b'{"previous": "1"}',
    "another key": b'{"live": "1", "next": "2"}',
    "a version that is not there": b'{"live": "3"}',
    "a path for a version": b'{"live": "../wine/1"}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_is_refused_by_name_until_a_version_is_promoted(model: Path, content: bytes) -> None:
    (model / ALIASES_FILE).write_bytes(content)
    for read in (current, rollback):
        with pytest.raises(VersionRefused, match="live") as refusal:
            read(model)
        assert str(model / ALIASES_FILE) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert promote(model, "2") == current(model) == Aliases("2", None)


def _promote_for_ever(model: Path, begun: Event) -> None:
    begun.set()
    while True:
        promote(model, "1")
        promote(model, "10")


def test_process_that_is_killed_while_it_promotes_leaves_a_whole_file(model: Path) -> None:
    promote(model, "1")
    promote(model, "10")  # as the process does, which may be killed before it has done anything
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        begun = context.Event()
        process = context.Process(target=_promote_for_ever, args=(model, begun))
        process.start()
        assert begun.wait(30)
        process.join(random.uniform(0, 0.01))  # the moment is what is tried
        process.kill()
        process.join()
        assert current(model) in (Aliases("1", "10"), Aliases("10", "1"))
        assert promote(model, "10").live == "10", "the lock has ended with the process"
    promote(model, "1")  # what was left over goes
    assert sorted(path.name for path in model.iterdir()) == ["1", "10", "2", ALIASES_FILE, HISTORY_FILE]


def _roll_back(model: Path, times: int) -> None:
    for _ in range(times):
        rollback(model)


def test_changes_of_several_processes_take_turns(model: Path) -> None:
    promote(model, "1")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_roll_back, args=(model, 25)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert current(model) == Aliases("1", "10"), "a hundred swaps are none"
    assert [path.name for path in model.iterdir() if path.name.startswith(".")] == []


def test_registry_follows_the_aliases(root: Path) -> None:
    assert load_registry(root).get("wine").version == "2"
    promote(root / "wine", "1")
    registry = load_registry(root)
    assert registry.get("wine").version == registry.live()[0].version == "1"
    assert registry.aliases("wine") == Aliases("1", "2")
    assert list(registry.versions("wine")) == ["1", "2"]
    assert load_one(root, "wine").version == "1"
    with pytest.raises(ModelNotFound):
        registry.aliases("none")


def test_only_live_and_previous_versions_are_loaded_when_no_others_are_wanted(root: Path) -> None:
    shutil.copytree(root / "wine" / "2", root / "wine" / "3")
    (root / "wine" / "3" / "model.joblib").unlink()
    rollback_to = promote(root / "wine", "2")
    assert rollback_to == Aliases("2", "3")
    promote(root / "wine", "1")
    registry = load_registry(root, selected="live")
    assert list(registry.versions("wine")) == ["1", "2"]


def test_directory_with_damaged_aliases_is_not_loaded(root: Path) -> None:
    (root / "wine" / ALIASES_FILE).write_text("{")
    with pytest.raises(VersionRefused, match=ALIASES_FILE):
        load_registry(root)


def test_what_is_done_to_versions_is_noted(model: Path) -> None:
    promote(model, "1")
    promote(model, "1")
    rollback(model)
    remove(model, "1")
    noted = read_changes(model)
    assert [(one.act, one.version) for one in noted] == [("promoted", "1"), ("rolled back", "10"), ("removed", "1")]
    assert all(datetime.fromisoformat(one.time).tzinfo for one in noted)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"[" * 100_000])
def test_a_damaged_history_keeps_nobody_from_anything_and_begins_anew(model: Path, content: bytes) -> None:
    (model / HISTORY_FILE).write_bytes(content)
    assert read_changes(model) == []
    promote(model, "1")
    assert [one.version for one in read_changes(model)] == ["1"]


def test_a_history_that_cannot_be_written_keeps_nobody_from_a_promotion(model: Path) -> None:
    (model / HISTORY_FILE).mkdir()
    assert promote(model, "1") == current(model)


def test_the_newest_changes_are_kept(model: Path) -> None:
    longest = "x" * 64
    changes = [VersionChange("2026-01-31T12:00:00+00:00", "rolled back", longest) for _ in range(MAX_CHANGES)]
    (model / HISTORY_FILE).write_bytes(msgspec.json.encode(changes))
    note(model, "promoted", "2")
    kept = read_changes(model)
    assert (kept[0].version, kept[-1].version, len(kept)) == (longest, "2", MAX_CHANGES)
    assert (model / HISTORY_FILE).stat().st_size < MAX_HISTORY_BYTES
