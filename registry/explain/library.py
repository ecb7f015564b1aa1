"""shap itself, which is optional: only what no kernel explains needs it."""

from __future__ import annotations

import warnings
from typing import Any


class CannotExplain(Exception):
    """Why a model has no explainer; never leaves this package."""


def import_shap() -> Any:
    """The library. It takes 100 MB and a second, once, before the fork. Raises CannotExplain."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports
            import shap
            import tqdm
    except ImportError as error:
        raise CannotExplain("shap is not installed: pip install 'forkserve[shap]'") from error
    # what takes longer than ten seconds gets a progress bar, and that a thread, which may not be there at the fork
    tqdm.tqdm.monitor_interval = 0
    return shap
