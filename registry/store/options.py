"""The options for loading versions; cheap to import, so that settings may hold them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options for loading versions: the start, reloads, retrainings and `check` use the same ones."""

    compiled: bool = True
    """Serve a compiled form where one answers bit for bit as the estimator does."""
    shap_evaluations: int = 500
    """Coalitions of features that a sampling explainer tries for a row, each over all background rows."""
    labels_as_text: bool = False
    """Answer labels as strings, whatever a classifier was fitted on."""


DEFAULT_OPTIONS = LoadOptions()
