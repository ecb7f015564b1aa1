"""What your own code imports: `Client` and `AsyncClient`, `add_version`, and `Trained` for a `train.py`.

    from forkserve import AsyncClient, Client
    from forkserve import FeatureOptions, Trained, TrainingData, add_version

Importing it is cheap; each name imports its own module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry.rows.infer_schema import FeatureOptions
    from registry.store.add import add_version
    from registry.training.script import Trained, TrainingData
    from serving.client.client import AsyncClient, Client
    from serving.client.errors import ForkserveError

__all__ = ["AsyncClient", "Client", "FeatureOptions", "ForkserveError", "Trained", "TrainingData", "add_version"]

HOMES = {
    "AsyncClient": "serving.client.client",
    "Client": "serving.client.client",
    "FeatureOptions": "registry.rows.infer_schema",
    "ForkserveError": "serving.client.errors",
    "Trained": "registry.training.script",
    "TrainingData": "registry.training.script",
    "add_version": "registry.store.add",
}


def __getattr__(name: str) -> Any:
    """Import a name from where it is defined."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
