"""Versions to reload, and what has become of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from harness.processes import eventually
from harness.service import Service


def add_copy(models: Path, name: str, version: str) -> Path:
    """Another version, the same as the first but for its number."""
    directory = Path(shutil.copytree(models / name / "1", models / name / version))
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
    return directory


def live(service: Service, name: str) -> str:
    return str(service.get(f"/v1/models/{name}")["live"])


def settles_on(service: Service, name: str, version: str) -> bool:
    """Return whether only new workers are left, and they say so."""
    return eventually(lambda: len(service.workers) == 2 and live(service, name) == version)
