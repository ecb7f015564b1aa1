"""Candidates: versions that were trained and wait to be verified, beside the models but under names no model can have.

A candidate lies in a model directory of its own, `{root}/.candidate-{job}.{attempt}/{model}/{version}`. It is complete
once its held-out rows exist, which are written last. An incomplete candidate, or one of another job, is a left-over.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from registry.asking import layout_of
from registry.errors import CannotAdd, Superseded, VersionRefused
from registry.model import LoadedModel
from registry.rows.features import Rows
from registry.store.add import labelled_rows
from registry.store.aliases import Aliases, alone, current, write_aliases
from registry.store.directory import directories, read_file, sync_directory, write_whole
from registry.store.history import note
from registry.store.intake import instances_of
from registry.store.manifest import Manifest, read_manifest
from registry.training.metrics import MEASURED, Truth, true_values
from registry.training.script import Trained

PREFIX = ".candidate-"
HELD_OUT = "held-out.npz"


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of a candidate, shape (rows, features), and their true values, none without a target."""

    rows: Rows
    truth: Truth


def candidate_root(root: Path, job: str, attempt: int) -> Path:
    """The directory into which an attempt of a job writes its candidate. Job ids need no escaping."""
    return root / f"{PREFIX}{job}.{attempt}"


def find_candidate(root: Path, job: str, model: str) -> Path | None:
    """The directory of the version that an attempt of the job has completed, if there is one."""
    for path in sorted(root.glob(f"{PREFIX}{job}.*")):
        versions = directories(path / model)
        if versions and (path / HELD_OUT).exists():
            return versions[-1]
    return None


def root_of(candidate: Path) -> Path:
    """The model directory that a candidate has of its own."""
    return candidate.parent.parent


def remove_candidates(root: Path, *, but: Path | None = None) -> None:
    """Remove all candidates `but` one, left-overs of killed trainings included.

    Only for a caller that knows that no other training runs. Directories that resist are left for the next time.
    """
    for path in root.glob(f"{PREFIX}*"):
        if but is None or path != root_of(but):
            shutil.rmtree(path, ignore_errors=True)


def write_held_out(path: Path, model: LoadedModel, trained: Trained) -> None:
    """Complete a candidate: write those held-out rows that it accepts into its root `path`."""
    assert trained.held_out is not None
    table = labelled_rows(trained.held_out, trained)
    rows, places = model.schema.fitting_rows(instances_of(table[list(model.schema.names)]))
    truth = np.empty((0, 1))
    if (columns := trained.target_columns) and model.manifest.task in MEASURED:
        # the classes as the estimator has them: labels may rename them
        layout = layout_of(trained.estimator, model.schema.table(rows))
        truth = true_values(table.iloc[places], columns, layout)
    content = io.BytesIO()
    kept = rows if not model.schema.has_text else np.frombuffer(msgspec.msgpack.encode(rows.tolist()), np.uint8)
    np.savez(content, rows=kept, truth=truth)
    write_whole(path / HELD_OUT, content.getvalue())


def read_held_out(candidate: Path) -> HeldOut:
    """The held-out rows of a candidate."""
    content = read_file(root_of(candidate) / HELD_OUT)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        rows = arrays["rows"]
        if rows.dtype == np.uint8:  # they hold texts; an array of objects would have to be pickled
            rows = np.array(msgspec.msgpack.decode(rows.tobytes()), dtype=object)
        return HeldOut(rows, arrays["truth"])


def find_trained(directory: Path, job: str) -> Manifest | None:
    """The manifest of the version in `directory` that a job has trained, if there is one."""
    for path in reversed(directories(directory)):
        try:
            manifest = read_manifest(path)
        except VersionRefused:
            continue
        if manifest.trained_by == job:
            return manifest
    return None


def take_in(candidate: Path, directory: Path, *, instead_of: str) -> Aliases:
    """Move a verified candidate into the model's `directory` and make it live, if `instead_of` is still live.

    If the process is killed, one of the two versions is live, complete: the aliases are written before the new version
    exists, and changed by one rename. Raises Superseded, CannotAdd when the version exists already, VersionRefused.
    """
    version = candidate.name
    with alone(directory):
        before = current(directory)
        if before.live != instead_of:
            raise Superseded(f"version {before.live} has become live meanwhile")
        if (directory / version).exists():
            raise CannotAdd(f"a version {version} was added meanwhile")
        write_aliases(directory, before)
        candidate.rename(directory / version)
        sync_directory(directory)
        after = before.then_live(version)
        write_aliases(directory, after)
        note(directory, "promoted", version)
    return after
