"""How versions are loaded; cheap to import, so that settings may hold it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a start, a reload, the verdict on a retraining and `check` must do alike."""

    compiled: bool = True
    """Serve a compiled form where one answers bit for bit as the estimator does."""
    shap_evaluations: int = 500
    """Coalitions of features that a sampling explainer tries for a row, each over all background rows."""


DEFAULT_OPTIONS = LoadOptions()
