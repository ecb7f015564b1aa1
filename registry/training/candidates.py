"""Versions that have been trained and wait to be verified: beside the models, under a name that no model can have.

A candidate lies in a model directory of its own, `{root}/.candidate-{job}.{attempt}/{model}/{version}`. It is whole
once its held-out rows are there, which are written last. What is not whole, or of another job, is a left-over.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from registry.errors import CannotAdd, Superseded, VersionRefused
from registry.model import LoadedModel
from registry.rows.features import Rows
from registry.store.add import instances_of
from registry.store.aliases import Aliases, alone, current, write_aliases
from registry.store.directory import directories, sync_directory, write_whole
from registry.store.manifest import Manifest, read_manifest

PREFIX = ".candidate-"
HELD_OUT = "held-out.npz"


@dataclass(frozen=True)
class HeldOut:
    """Rows of the candidate, shape (rows, features), and what is true of each.

    The truth is a number, or the place of a label among the classes; it is empty for a model without a target.
    """

    rows: Rows
    truth: NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A whole candidate: the directory of the version, in a model directory of its own."""

    root: Path
    directory: Path


def candidate_root(root: Path, job: str, attempt: int) -> Path:
    """Where an attempt of a job writes. Job ids need no escaping."""
    return root / f"{PREFIX}{job}.{attempt}"


def find_candidate(root: Path, job: str, model: str) -> Candidate | None:
    """The one that an earlier attempt of the job has finished."""
    for path in sorted(root.glob(f"{PREFIX}{job}.*")):
        versions = directories(path / model)
        if versions and (path / HELD_OUT).exists():
            return Candidate(path, versions[-1])
    return None


def remove_candidates(root: Path, *, but: Candidate | None = None) -> None:
    """All of them, left-overs of trainings that were killed included.

    To be called by who knows that nobody else trains. What cannot be removed now is removed the next time.
    """
    for path in root.glob(f"{PREFIX}*"):
        if but is None or path != but.root:
            shutil.rmtree(path, ignore_errors=True)


def write_held_out(path: Path, model: LoadedModel, estimator: Any, table: pd.DataFrame, target: str | None) -> None:
    """Keep the held-out rows of a candidate, those that it takes, in its root `path`; by this it is whole."""
    rows, places = model.schema.fitting_rows(instances_of(table[list(model.schema.names)]))
    truth = np.empty(0)
    if target is not None:
        truth = table[target].to_numpy()[places]
        if model.manifest.task == "classification":
            truth = np.searchsorted(estimator.classes_, truth)  # classes_ is sorted, as scikit-learn promises
    content = io.BytesIO()
    np.savez(content, rows=rows, truth=truth.astype(np.float64))
    write_whole(path / HELD_OUT, content.getvalue())


def read_held_out(candidate: Candidate) -> HeldOut:
    """The held-out rows of a candidate."""
    with np.load(candidate.root / HELD_OUT, allow_pickle=False) as arrays:
        return HeldOut(arrays["rows"], arrays["truth"])


def find_trained(directory: Path, job: str) -> Manifest | None:
    """The version in `directory` that a job has trained, if it was taken in."""
    for path in reversed(directories(directory)):
        try:
            manifest = read_manifest(path)
        except VersionRefused:
            continue
        if manifest.trained_by == job:
            return manifest
    return None


def take_in(candidate: Candidate, directory: Path, *, instead_of: str) -> Aliases:
    """Give a verified candidate its name in the model's `directory`, and make it live if `instead_of` still is.

    Killed at any moment, either version is live, whole: what is live is written down before there is a newer version,
    and changed by one rename. Raises Superseded, CannotAdd when there is another version of that name, VersionRefused.
    """
    version = candidate.directory.name
    with alone(directory):
        before = current(directory)
        if before.live != instead_of:
            raise Superseded(f"version {before.live} has become live meanwhile")
        if (directory / version).exists():
            raise CannotAdd(f"a version {version} was added meanwhile")
        write_aliases(directory, before)
        candidate.directory.rename(directory / version)
        sync_directory(directory)
        after = Aliases(version, before.live)
        write_aliases(directory, after)
    return after
