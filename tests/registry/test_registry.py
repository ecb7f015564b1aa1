"""All models by name and version: order, what is live, what is no model at all."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from registry.errors import ModelNotFound, VersionNotFound, VersionRefused
from registry.model import LoadedModel
from registry.registry import Registry, load_registry
from registry.store.directory import directories, model_directories
from registry.store.loader import load_version
from tests.conftest import DEMO_MODELS


@pytest.fixture(scope="module")
def wine(models: Path) -> LoadedModel:
    return load_version(models, models / "wine" / "1")


def renamed(model: LoadedModel, name: str, version: str) -> LoadedModel:
    return LoadedModel(msgspec.structs.replace(model.manifest, name=name, version=version), model.compute)


@pytest.mark.parametrize(
    "ordered",
    [
        ["1", "2", "10", "100"],
        ["1.0", "1.2", "1.9", "1.10", "2.0"],
        ["1.0.9", "1.0.10", "1.1"],
        ["2024-01-31", "2024-02-01", "2024-10-01"],
        ["1", "1.1", "1.rc"],
    ],
)
def test_versions_are_ordered_as_people_count(wine: LoadedModel, ordered: list[str]) -> None:
    registry = Registry([renamed(wine, "wine", version) for version in reversed(ordered)])
    assert list(registry.versions("wine")) == ordered
    assert registry.get("wine").version == ordered[-1]


def test_models_are_found_by_name_and_version(wine: LoadedModel) -> None:
    registry = Registry([renamed(wine, "b", "2"), renamed(wine, "b", "10"), renamed(wine, "a", "1")])
    assert [model.name for model in registry.live()] == ["a", "b"]
    assert [(model.name, model.version) for model in registry] == [("a", "1"), ("b", "2"), ("b", "10")]
    assert registry.get("b", "2").version == "2"
    assert len(registry) == 2


def test_what_is_not_there_is_not_found(wine: LoadedModel) -> None:
    registry = Registry([wine])
    for ask in (lambda: registry.get("none"), lambda: registry.get("none", "1"), lambda: registry.versions("none")):
        with pytest.raises(ModelNotFound):
            ask()
    with pytest.raises(VersionNotFound):
        registry.get("wine", "2")


def test_registry_cannot_be_changed(wine: LoadedModel) -> None:
    with pytest.raises(TypeError):
        Registry([wine]).versions("wine")["2"] = wine  # type: ignore[index]


def test_directory_of_all_demo_models_is_loaded(models: Path) -> None:
    loaded = [f"{model.name}/{model.version}" for model in load_registry(models)]
    assert loaded == [f"{name}/1" for name in DEMO_MODELS]


def test_directories_whose_names_are_no_names_are_passed_over(tmp_path: Path) -> None:
    for name in ("wine/2", "wine/10", ".git/objects", "wine/.tmp", ".new-abc/x", "wine/__pycache__", "a b/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "README.md").touch()
    (tmp_path / "wine" / "notes.txt").touch()
    assert [path.name for path in model_directories(tmp_path)] == ["wine"]
    assert [path.name for path in directories(tmp_path / "wine")] == ["2", "10"]


@pytest.mark.parametrize("root", ["nothing", "empty", "file"])
def test_directory_without_models_says_what_to_do(tmp_path: Path, root: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(VersionRefused, match="forkserve train"):
        load_registry(tmp_path / root)
