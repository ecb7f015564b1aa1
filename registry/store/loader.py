"""Loads one version: its bytes are read once, hashed, and loaded from memory only if the hash is the manifest's.

A pickle is code, and so are the modules that a version brings. The very bytes that were hashed are executed, so a
file swapped in between changes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from registry.asking import estimator_compute, layout_of
from registry.completion import completed
from registry.errors import CannotRead, InvalidRows, VersionRefused, WrongOutputs
from registry.estimator import Compute, only_compares, task_of
from registry.explain.choose import choose_explainers
from registry.formats.artefact import load_content, look_into
from registry.formats.versions import mismatch, refusal
from registry.kernels import Compiled, compile_verified
from registry.kernels.kernel import Unsupported
from registry.kernels.verification import each_alone
from registry.memory import available_memory
from registry.model import LoadedModel
from registry.outputs import Layout
from registry.rows.features import Rows
from registry.rows.schema import Schema
from registry.store.code import CODE, MAX_BYTES, MAX_FILES, OwnCode, plain
from registry.store.directory import read_file
from registry.store.manifest import Manifest, layout_in, read_manifest
from registry.store.options import DEFAULT_OPTIONS, LoadOptions

log = structlog.get_logger(__name__)

CLOSE_ENOUGH = 1e-9
"""The tolerance between outputs and those recorded with the version: builds of BLAS sum in different orders."""

ASKED_ALONE = 3
"""Rows that an estimator in Python is asked about together and alone."""


def load_version(
    root: Path,
    directory: Path,
    options: LoadOptions = DEFAULT_OPTIONS,
    *,
    fallback: bool = False,
    manifest: Manifest | None = None,
) -> LoadedModel:
    """The version kept in `directory` below the model directory `root`.

    It must be what a `manifest` that was read before says. A version whose manifest is valid but whose artefact is not
    raises VersionRefused, naming the file; with `fallback` a model that answers the sample's mean replaces it.
    A compiled form that answers bit for bit as the estimator does replaces it, unless the options say otherwise.
    """
    manifest = manifest or read_manifest(directory)
    path = directory / manifest.artefact
    layout = recorded = layout_in(manifest)
    code = None
    try:
        if manifest.code:
            code = OwnCode(directory / CODE, read_code(root, directory, manifest))
        estimator = load_artefact(path, verified_bytes(root, path, manifest.sha256), manifest, code)
        estimator = completed(estimator, manifest.task, manifest.classes)
        _check_kind(path, estimator, manifest)
        schema = Schema(manifest.features, manifest.input)
        background = _background(path, manifest, schema)
        if not manifest.outputs:
            layout = _renewed(path, recorded, estimator, schema.table(background))
        compute = estimator_compute(estimator, schema, layout)
        _verify_answers(path, manifest, background, compute)
    except VersionRefused as error:
        if code is not None:
            code.forget()
        if not fallback:
            raise
        return fall_back(manifest, str(error), options)
    quick, reason = _compile(manifest, estimator, schema, background, compute, layout, options)
    python = () if quick is None else quick.python
    compute = compute if quick is None else quick.compute
    if quick is None or python:
        compute = _independent_of_batch(manifest, compute, background[:ASKED_ALONE])
    choice = choose_explainers(manifest, estimator, compute, background, options.shap_evaluations)
    layout = layout.in_text if options.labels_as_text else layout
    model = LoadedModel(
        manifest,
        compute,
        compiled=quick is not None,
        python_steps=python,
        reason=reason,
        explainer=choice.explainer,
        other_explainers=choice.others,
        not_explained=choice.reason,
        code=code,
        # own code may change what a class does
        ignores_sign_of_zero=code is None and only_compares(estimator),
        other_layout=None if layout == recorded else layout,
    )
    if code is not None:
        weakref.finalize(model, code.forget)
    return model


def fall_back(manifest: Manifest, reason: str, options: LoadOptions) -> LoadedModel:
    """The model that answers the mean of the sample in place of a version that does not load."""
    log.error("Fallback model in use", model=manifest.name, version=manifest.version, reason=reason)
    other = layout_in(manifest).in_text if options.labels_as_text else None
    mean = np.array(manifest.baseline)
    reason = "the version could not be loaded"
    return LoadedModel(
        manifest, lambda rows: np.tile(mean, (len(rows), 1)), fallback=True, reason=reason, other_layout=other
    )


def verified_bytes(root: Path, path: Path, sha256: str) -> bytes:
    """The bytes of a file below `root`, if they have the hash that a manifest states. Raises VersionRefused."""
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root.resolve(strict=True)):
            raise VersionRefused(path, f"is a link that leaves {root}")
        content = read_file(real, max_bytes=available_memory(), flags=os.O_NOFOLLOW)
    except OSError as error:
        too_large = error.errno == errno.EFBIG
        reason = "needs more memory than there is" if too_large else error.strerror or str(error)
        raise VersionRefused(path, reason) from error
    except RuntimeError as error:  # Python before 3.13 raises this for a link to itself
        raise VersionRefused(path, "is a link that leads nowhere") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise VersionRefused(path, f"has sha256 {found[:12]}..., its manifest says {sha256[:12]}...")
    return content


def read_code(root: Path, directory: Path, manifest: Manifest) -> dict[str, bytes]:
    """The verified bytes of a version's own code, by path below its `code`. Raises VersionRefused."""
    size, files = 0, {}
    if len(manifest.code) > MAX_FILES:
        raise VersionRefused(directory / CODE, f"has more than {MAX_FILES} files")
    for name, sha256 in manifest.code.items():
        path = directory / CODE / name
        try:
            size += path.stat().st_size
        except OSError as error:
            raise VersionRefused(path, error.strerror or str(error)) from error
        if size > MAX_BYTES:
            raise VersionRefused(path, f"brings the version's own code beyond {MAX_BYTES >> 20} MB")
        files[name] = verified_bytes(root, path, sha256)
    return files


def load_artefact(path: Path, content: bytes, manifest: Manifest, code: OwnCode | None = None) -> Any:
    """The estimator in the `content` of an artefact, which is executed with its `code`. Raises VersionRefused."""
    kind = manifest.artefact_format
    try:
        fitted_with = manifest.fitted_with
        if fitted_with is None:  # it was added before versions were read
            fitted_with = look_into(content, kind).versions
        clause = mismatch(fitted_with, kind)
        if clause and not manifest.forced:
            raise VersionRefused(path, refusal(clause))
        return load_content(path, content, kind, code, manifest.trusted)
    except CannotRead as error:
        reason = str(error)
        loads = reason.startswith(("does not load", "needs"))
        raise VersionRefused(path, reason if loads else f"does not load: it {reason}") from error


def _check_kind(path: Path, estimator: Any, manifest: Manifest) -> None:
    if task_of(estimator) != manifest.task:
        raise VersionRefused(path, f"holds a {type(estimator).__name__}, its manifest says {manifest.task}")
    if manifest.task == "classification" and not manifest.targets:
        count = len(layout_of(estimator).targets[0].classes)
        if count != len(manifest.classes):
            raise VersionRefused(path, f"has {count} classes, its manifest {len(manifest.classes)}")


def _background(path: Path, manifest: Manifest, schema: Schema) -> Rows:
    try:
        return schema.rows([list(row) for row in manifest.background])
    except InvalidRows as error:
        raise VersionRefused(path, f"its background rows do not fit its features: {error.faults[0].reason}") from error


def _renewed(path: Path, recorded: Layout, estimator: Any, table: Any) -> Layout:
    """The layout of a version added before there were layouts: with margins and scores, and the types of its labels."""
    try:
        layout = layout_of(estimator, table)
    except MemoryError:
        raise
    except Exception as error:
        raise VersionRefused(path, f"does not predict: {type(error).__name__}: {plain(str(error))}") from error
    if layout.is_named:
        raise VersionRefused(path, "has several outputs, its manifest one")
    unnamed = layout.in_text.targets == recorded.in_text.targets
    return layout if unnamed else replace(layout, targets=recorded.targets)  # labels that were given names keep these


def _verify_answers(path: Path, manifest: Manifest, background: Rows, compute: Compute) -> None:
    """Check that the estimator answers as it did when it was added; this warms it."""
    expected = np.array(manifest.expected)
    try:
        answers = compute(background[: len(expected)])
    except MemoryError:
        raise
    except WrongOutputs as error:
        raise VersionRefused(path, str(error)) from error
    except Exception as error:
        raise VersionRefused(path, f"does not predict: {type(error).__name__}: {plain(str(error))}") from error
    width = expected.shape[1] if expected.ndim == 2 else 0
    answers = answers[:, :width]  # margins and scores were not recorded at first
    if answers.shape != expected.shape or not np.allclose(answers, expected, rtol=CLOSE_ENOUGH, atol=CLOSE_ENOUGH):
        raise VersionRefused(path, "does not answer as it did when it was added")


def _independent_of_batch(manifest: Manifest, compute: Compute, rows: Rows) -> Compute:
    """A function that answers each row as alone, since who else asks at the same time must not matter."""
    try:
        together, alone = compute(rows), each_alone(compute, rows)
    except Exception:  # noqa: BLE001 - a row that breaks it, which the trial or the request is told
        return compute
    if np.allclose(together, alone, rtol=CLOSE_ENOUGH, atol=CLOSE_ENOUGH, equal_nan=True):
        return compute
    log.info("Model asked about one row at a time", model=manifest.name, version=manifest.version)
    return partial(each_alone, compute)


def _compile(
    manifest: Manifest,
    estimator: Any,
    schema: Schema,
    background: Rows,
    compute: Compute,
    layout: Layout,
    options: LoadOptions,
) -> tuple[Compiled | None, str]:
    """The estimator's compiled form, if it has one that answers probe rows with equal bits; else why not."""
    if not options.compiled:
        return None, "COMPILE is false"
    try:
        return compile_verified(estimator, schema, background, compute, layout), ""
    except Unsupported as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - private attributes of estimators, which another release may lack
        reason = f"it could not be read ({type(error).__name__}: {error})"
    log.info("Model not compiled", model=manifest.name, version=manifest.version, reason=reason)
    return None, reason
