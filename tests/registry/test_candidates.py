"""Candidates: whole or left over, and taken in so that either version is live at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

from registry.errors import CannotAdd, Superseded
from registry.registry import load_registry
from registry.store.add import add_trained
from registry.store.aliases import Aliases, current
from registry.training import candidates
from registry.training.candidates import (
    HELD_OUT,
    candidate_root,
    find_candidate,
    find_trained,
    read_held_out,
    remove_candidates,
    root_of,
    take_in,
    write_held_out,
)
from registry.training.script import Trained
from tests.registry.test_promotion import add_plane


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model directory with one version of `plane`."""
    add_plane(tmp_path)
    return tmp_path


@pytest.fixture
def candidate(root: Path) -> Path:
    """A whole candidate for its second version, trained by the job `j`."""
    aside = candidate_root(root, "j", 1)
    add_plane(aside, version="2", trained_by="j")
    (aside / HELD_OUT).touch()
    found = find_candidate(root, "j", "plane")
    assert found is not None
    return found


def test_candidate_is_neither_a_model_nor_live(root: Path, candidate: Path) -> None:
    assert [f"{model.name}/{model.version}" for model in load_registry(root)] == ["plane/1"]
    assert candidate.name == "2"


def test_candidate_without_its_held_out_rows_is_a_left_over(root: Path, candidate: Path) -> None:
    (root_of(candidate) / HELD_OUT).unlink()
    assert find_candidate(root, "j", "plane") is None


def test_left_overs_of_other_jobs_are_removed_and_the_own_is_kept(root: Path, candidate: Path) -> None:
    candidate_root(root, "killed", 2).mkdir()
    remove_candidates(root, but=candidate)
    assert [path.name for path in root.glob(".*")] == [root_of(candidate).name]
    remove_candidates(root)
    assert list(root.glob(".*")) == []


def test_candidate_that_is_taken_in_is_live_and_known_by_its_job(root: Path, candidate: Path) -> None:
    assert take_in(candidate, root / "plane", instead_of="1") == current(root / "plane") == Aliases("2", "1")
    trained = find_trained(root / "plane", "j")
    assert trained is not None
    assert trained.version == "2"
    assert find_trained(root / "plane", "k") is None


def test_candidate_does_not_take_the_place_of_another_live_version(root: Path, candidate: Path) -> None:
    with pytest.raises(Superseded, match="version 1 has become live"):
        take_in(candidate, root / "plane", instead_of="7")
    assert find_candidate(root, "j", "plane") == candidate


def test_candidate_does_not_replace_a_version_of_its_name(root: Path, candidate: Path) -> None:
    add_plane(root)
    with pytest.raises(CannotAdd, match="version 2 was added meanwhile"):
        take_in(candidate, root / "plane", instead_of="2")


@pytest.mark.parametrize("step", ["write_aliases", "sync_directory"])
def test_live_version_stays_live_when_the_process_ends_half_way(
    root: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Also without a file of aliases, where the newest version is live."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(candidates, step, end)
    with pytest.raises(KeyboardInterrupt):
        take_in(candidate, root / "plane", instead_of="1")
    assert current(root / "plane").live == "1"
    assert load_registry(root).get("plane").version == "1"


def test_held_out_texts_are_kept_without_a_pickle(tmp_path: Path) -> None:
    texts = pd.DataFrame({"note": ["good", "bad, bad", "", "naïve \U0001f600"] * 5, "size": range(20)})
    truth = ["yes", "no"] * 10
    head = ColumnTransformer([("note", CountVectorizer(), "note"), ("size", "passthrough", ["size"])])
    estimator = make_pipeline(head, DecisionTreeClassifier()).fit(texts, truth)
    table = texts.assign(label=truth)
    trained = Trained(estimator=estimator, sample=table, held_out=table, target="label")
    aside = candidate_root(tmp_path, "job", 1)
    model = add_trained(aside, "notes", trained)
    write_held_out(aside, model, trained)
    candidate = find_candidate(tmp_path, "job", "notes")
    assert candidate is not None
    kept = read_held_out(candidate)
    assert kept.rows.tolist() == [[note, float(size)] for note, size in texts.itertuples(index=False)]
