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

from registry.errors import CannotTry, ModelNotFound, VersionNotFound, VersionRefused
from registry.registry import load_one, load_registry
from registry.store.aliases import (
    Aliases,
    begin_canary,
    begin_shadow,
    current,
    end_canary,
    end_shadow,
    give_up_canary,
    promote,
    read_aliases,
    remove,
    rollback,
)
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


def tried(model: Path) -> tuple[str | None, str | None]:
    """The versions of the canary and of the shadow."""
    aliases = current(model)
    return tuple(one and one.version for one in (aliases.canary, aliases.shadow))  # type: ignore[return-value]


def test_versions_are_tried_beside_the_live_one_until_that_is_ended(model: Path) -> None:
    begin_shadow(model, "1")
    begin_canary(model, "2", 10.0)
    assert current(model).canary.percent == 10.0  # type: ignore[union-attr]
    assert (current(model).live, current(model).previous, tried(model)) == ("10", "2", ("2", "1"))
    end_canary(model)
    assert tried(model) == (None, "1")
    end_shadow(model)
    assert current(model) == Aliases("10", "2")


@pytest.mark.parametrize(("version", "error"), [("10", CannotTry), ("3", VersionNotFound), ("../2", VersionNotFound)])
def test_what_is_live_or_not_there_is_not_tried(model: Path, version: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        begin_canary(model, version, 10.0)
    with pytest.raises(error):
        begin_shadow(model, version)
    assert current(model) == Aliases("10", "2")


def test_version_that_becomes_live_is_not_tried_any_more_and_another_one_is(model: Path) -> None:
    begin_canary(model, "2", 10.0)
    begin_shadow(model, "1")
    promote(model, "2")
    assert tried(model) == (None, "1")
    begin_canary(model, "10", 10.0)
    rollback(model)
    assert (current(model).live, tried(model)) == ("10", (None, "1"))


def test_version_that_is_removed_is_not_tried_any_more(model: Path) -> None:
    begin_canary(model, "2", 10.0)
    begin_shadow(model, "1")
    remove(model, "2")
    assert tried(model) == (None, "1")
    shutil.rmtree(model / "1")
    assert tried(model) == (None, None)


def test_canary_is_given_up_once_and_only_while_it_is_the_same(model: Path) -> None:
    first = begin_canary(model, "2", 10.0).canary
    second = begin_canary(model, "2", 10.0).canary
    assert first is not None
    assert second is not None
    assert not give_up_canary(model, first, "it failed"), "another one has begun since"
    assert give_up_canary(model, second, "it failed")
    assert not give_up_canary(model, second, "it failed")
    assert current(model).canary.ended == "it failed"  # type: ignore[union-attr]


def test_versions_that_are_tried_are_loaded_even_if_only_live_ones_are(root: Path) -> None:
    for version in ("3", "4"):
        directory = Path(shutil.copytree(root / "wine" / "1", root / "wine" / version))
        manifest = (directory / "manifest.json").read_text()
        (directory / "manifest.json").write_text(manifest.replace('"version": "1"', f'"version": "{version}"'))
    begin_shadow(root / "wine", "1")
    assert list(load_registry(root, selected="live").versions("wine")) == ["1", "3", "4"]
    begin_canary(root / "wine", "2", 1.0)
    assert list(load_registry(root, selected="live").versions("wine")) == ["1", "2", "3", "4"]
