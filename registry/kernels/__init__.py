"""Compiled forms of fitted scikit-learn estimators: the same answers bit for bit, at the speed of the hardware."""

from __future__ import annotations

from registry.kernels.columns import BUILD
from registry.kernels.compiling import compile_estimator
from registry.kernels.forest import WALK
from registry.kernels.linear import MULTIPLY_ENTRIES
from registry.kernels.links import BEFORE_SOFTMAX, BINARY
from registry.kernels.matrix import ADD_ENTRIES, ADD_MATRIX
from registry.kernels.text import COUNT_WORDS, FILL_ENTRIES, NORMALIZE_ENTRIES
from registry.kernels.tree_shap import ADD_PATTERNS, TREE_INTERACTIONS, TREE_SHAP
from registry.kernels.verification import Compiled, compile_verified, probe_rows, verify

__all__ = ["Compiled", "compile_estimator", "compile_verified", "probe_rows", "verify", "warm"]

KERNELS = (
    ADD_ENTRIES,
    ADD_MATRIX,
    ADD_PATTERNS,
    BEFORE_SOFTMAX,
    BINARY,
    BUILD,
    COUNT_WORDS,
    FILL_ENTRIES,
    MULTIPLY_ENTRIES,
    NORMALIZE_ENTRIES,
    TREE_INTERACTIONS,
    TREE_SHAP,
    WALK,
)


def warm() -> None:
    """Compile all kernels or read them from numba's cache; in the master, before it forks. Starts no thread."""
    for kernel in KERNELS:
        kernel.load()
