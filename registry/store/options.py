"""How versions are loaded; cheap to import, so that settings may hold it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How versions are loaded, alike at a start, at a reload, for the verdict on a retraining and by `check`."""

    compiled: bool = True
    """Serve a compiled form where one answers bit for bit as the estimator does."""
    shap_evaluations: int = 500
    """Coalitions of features that a sampling explainer tries for a row, each over all background rows."""


DEFAULT_OPTIONS = LoadOptions()
