"""The module that your own code imports: `add_version`, and `Trained` and `TrainingData` for a `train.py`.

    from forkserve import FeatureOptions, Trained, TrainingData, add_version

Importing this module is cheap; each name imports its own module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry.rows.infer_schema import FeatureOptions
    from registry.store.add import add_version
    from registry.training.script import Trained, TrainingData

__all__ = ["FeatureOptions", "Trained", "TrainingData", "add_version"]

HOMES = {
    "FeatureOptions": "registry.rows.infer_schema",
    "Trained": "registry.training.script",
    "TrainingData": "registry.training.script",
    "add_version": "registry.store.add",
}


def __getattr__(name: str) -> Any:
    """Import a name from where it is defined."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


if __name__ == "__main__":  # `python -m forkserve` is the command of that name
    import runpy

    runpy.run_path(f"{__file__.rpartition('/')[0]}/main.py", run_name="__main__")
