"""A registry of what the model directory contains: what does not load is left out, and said so when it is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.errors import ModelNotFound, NotLoaded, VersionNotFound, VersionRefused
from registry.model import LoadedModel
from registry.registry import Refusal, Registry
from registry.store.aliases import Aliases, promote
from registry.store.loader import load_version
from registry.store.manifest import read_manifest, write_manifest
from registry.store.reload import Load, renew_registry, versions_to_load

EMPTY = Registry([])


@pytest.fixture
def root(models: Path, tmp_path: Path) -> Path:
    """Two models: wine in three versions, diabetes in one."""
    for version in ("1", "2", "3"):
        directory = tmp_path / "models" / "wine" / version
        shutil.copytree(models / "wine" / "1", directory)
        write_manifest(directory, msgspec.structs.replace(read_manifest(models / "wine" / "1"), version=version))
    shutil.copytree(models / "diabetes", tmp_path / "models" / "diabetes")
    return tmp_path / "models"


def refusing(root: Path, *names: str) -> Load:
    """Load everything but the versions of these names."""

    def load(directory: Path) -> LoadedModel:
        if f"{directory.parent.name}/{directory.name}" in names:
            raise VersionRefused(directory / "model.joblib", "is broken")
        return load_version(root, directory)

    return load


def start(root: Path, *names: str) -> Registry:
    registry, refused = renew_registry(EMPTY, root, refusing(root, *names), selected="all")
    assert refused == tuple(f"{name}/model.joblib: is broken" for name in sorted(names))
    return registry


def fails(call: Callable[[], Any], kind: type[Exception], words: str | None = None) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_version_that_does_not_load_is_left_out_and_the_others_serve(root: Path) -> None:
    registry = start(root, "wine/1")
    assert [f"{model.name}/{model.version}" for model in registry] == ["diabetes/1", "wine/2", "wine/3"]
    assert registry.refusals == (Refusal("wine", "1", "wine/1/model.joblib: is broken"),)
    assert registry.get("wine").version == "3"
    fails(lambda: registry.get("wine", "1"), NotLoaded, r"^version 1 of the model wine could not be loaded")
    fails(lambda: registry.get("wine", "7"), VersionNotFound)
    fails(lambda: registry.get("beer"), ModelNotFound)


def test_in_place_of_a_live_version_that_does_not_load_the_previous_one_is_live(root: Path) -> None:
    registry = start(root, "wine/3")
    assert registry.aliases("wine") == Aliases("2")
    assert registry.get("wine").version == "2"
    fails(lambda: registry.get("wine", "3"), NotLoaded)
    promote(root / "wine", "1")
    promote(root / "wine", "3")
    assert start(root, "wine/3").get("wine").version == "1", "the previous one, not the newest"


def test_without_live_and_previous_version_the_others_can_only_be_named(root: Path) -> None:
    registry = start(root, "wine/2", "wine/3")
    fails(lambda: registry.get("wine"), NotLoaded, r"^the model wine could not be loaded; /health says why$")
    assert registry.get("wine", "1").version == "1"
    assert list(registry.versions("wine")) == ["1"]
    assert [model.name for model in registry.live()] == ["diabetes"]


def test_a_model_of_which_nothing_loads_is_not_there(root: Path) -> None:
    registry = start(root, "wine/1", "wine/2", "wine/3")
    for ask in (registry.get, registry.versions, registry.aliases):
        fails(lambda ask=ask: ask("wine"), NotLoaded)  # type: ignore[misc]
    assert "wine" not in registry
    assert len(registry) == 1


def test_damaged_aliases_are_the_whole_model(root: Path) -> None:
    (root / "wine" / "aliases.json").write_text("?")
    assert [path.parent.name for path in versions_to_load(root, "all")] == ["diabetes"]
    registry, (line,) = renew_registry(EMPTY, root, refusing(root), selected="all")
    assert line.startswith("wine/aliases.json: ")
    assert [(refusal.model, refusal.version) for refusal in registry.refusals] == [("wine", "")]
    fails(lambda: registry.get("wine", "1"), NotLoaded, "^the model wine")


def test_a_reload_keeps_what_was_live_and_takes_what_is_mended(root: Path) -> None:
    before = start(root, "wine/2")
    shutil.copytree(root / "wine" / "3", root / "wine" / "4")
    write_manifest(root / "wine" / "4", msgspec.structs.replace(read_manifest(root / "wine" / "3"), version="4"))
    after, refused = renew_registry(before, root, refusing(root, "wine/4"), selected="all")
    assert after.get("wine") is before.get("wine")
    assert refused == ("wine/4/model.joblib: is broken",)
    assert list(after.versions("wine")) == ["1", "3"], "as it was altogether"
    mended, refused = renew_registry(after, root, refusing(root), selected="all")
    assert (mended.get("wine").version, list(mended.versions("wine")), refused) == ("4", ["1", "2", "3", "4"], ())
    assert mended.refusals == ()


def test_versions_are_loaded_in_the_order_in_which_they_are_tried(root: Path) -> None:
    loaded = []

    def load(directory: Path) -> LoadedModel:
        loaded.append(directory)
        return load_version(root, directory)

    renew_registry(EMPTY, root, load, selected="live")
    assert loaded == versions_to_load(root, "live") == [root / "diabetes/1", root / "wine/2", root / "wine/3"]
