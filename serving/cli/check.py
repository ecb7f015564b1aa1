"""What `forkserve check` looks at before a deploy: every model, and what it answers in a forked child."""

from __future__ import annotations

import os
import select
from typing import Any

from registry.errors import VersionRefused
from registry.model import LoadedModel
from registry.registry import Registry, read_offer
from registry.store.directory import model_directories, version_directories
from registry.store.loader import load_version
from serving.errors import CannotServe
from serving.master import prefork
from serving.settings import Settings

CHILD_SECONDS = 30
"""A child that hangs after the fork hangs for ever; one that works needs milliseconds."""


def find_faults(settings: Settings) -> list[str]:
    """One line for everything that would keep this service from starting or answering."""
    faults: list[str] = []
    loaded: list[LoadedModel] = []
    try:
        for directory in version_directories(settings.model_dir):
            try:
                options = settings.load_options
                loaded.append(load_version(settings.model_dir, directory, options, fallback=settings.model_fallback))
            except VersionRefused as error:
                faults.append(str(error))
        for directory in model_directories(settings.model_dir):
            read_offer(directory, settings.serve_versions)
        prefork.import_modules(settings.preload_modules)
        prefork.check_single_thread()
    except (VersionRefused, CannotServe) as error:
        faults.append(str(error))
        return faults
    for model in Registry(loaded):
        fault = _try_after_fork(model)
        if fault:
            faults.append(fault)
    return faults


def _try_after_fork(model: LoadedModel) -> str | None:
    """Predict and explain the example in a forked child, as a worker will."""
    pid = os.fork()
    if pid == 0:
        _answer_and_exit(model)
    descriptor = os.pidfd_open(pid)
    try:
        finished, _, _ = select.select([descriptor], [], [], CHILD_SECONDS)
    finally:
        os.close(descriptor)
    if not finished:
        os.kill(pid, 9)
    _, status = os.waitpid(pid, 0)
    if not finished:
        return f"{model.name}/{model.version} hangs in a forked process"
    if status != 0:
        return f"{model.name}/{model.version} fails in a forked process"
    return None


def _answer_and_exit(model: LoadedModel) -> Any:
    code = 1
    try:
        rows = model.schema.rows([model.manifest.example])
        model.predict(rows)
        if model.explainer is not None and not model.explainer.jobs_only:
            model.explain(rows)
        code = 0
    finally:
        # not sys.exit: nothing of the parent's may be flushed or cleaned up twice
        os._exit(code)
