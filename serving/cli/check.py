"""What `forkserve check` looks at before a deploy: the settings' modules, and every version, tried as at a reload."""

from __future__ import annotations

from functools import partial

from registry.errors import VersionRefused
from registry.registry import select_versions
from registry.store.directory import model_directories, version_directories
from registry.store.loader import load_version
from serving.errors import CannotServe
from serving.master import prefork
from serving.process.trial import try_version
from serving.settings import Settings


def find_faults(settings: Settings) -> list[str]:
    """One line for everything that would keep this service from starting or answering."""
    root = settings.model_dir
    load = partial(load_version, root, options=settings.load_options, fallback=settings.model_fallback)
    faults: list[str] = []
    try:
        prefork.import_modules(settings.preload_modules)
        prefork.check_single_thread()
        for directory in version_directories(root):
            reason = try_version(load, directory, seconds=settings.reload_timeout_seconds)
            if reason is not None:
                faults.append(f"{directory}: {reason}")
        for directory in model_directories(root):
            select_versions(directory, settings.serve_versions)
    except (VersionRefused, CannotServe) as error:
        faults.append(str(error))
    return faults
