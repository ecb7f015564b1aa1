"""Models whose names, classes and texts attack whoever shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from registry.store.add import add_trained
from registry.training.script import Trained

MARKUP = '<img src=x onerror="document.title=666">'
BREAKING = "\"'><script>document.title=666</script>{{ 7*7 }}{% raw %}"
LONG = "a_name_that_is_very_long_" * 8
FEATURE_CHARACTERS = 128
"""As many as the name of a feature may have; one of a class may have more."""
LONG_FEATURE = LONG[:FEATURE_CHARACTERS]
NAMES = (MARKUP, BREAKING, LONG_FEATURE, "a/b?c#d&e=f+g%20")

FEATURES, CLASSES = 200, 60


def add_hostile(root: Path) -> None:
    """A model `hostile` of few features and classes with hostile names, and `wide` with very many long ones."""
    generator = np.random.default_rng(0)
    sample = pd.DataFrame({name: generator.normal(size=40) for name in NAMES})
    labels = pd.Series([MARKUP, BREAKING] * 20)
    add_trained(root, "hostile", Trained(estimator=LogisticRegression().fit(sample, labels), sample=sample))
    wide = pd.DataFrame(
        generator.normal(size=(CLASSES * 2, FEATURES)), columns=[f"{LONG[:125]}{n:03}" for n in range(FEATURES)]
    )
    classes = pd.Series([f"{LONG[:196]}{n:03}" for n in range(CLASSES)] * 2)
    add_trained(root, "wide", Trained(estimator=DummyClassifier().fit(wide, classes), sample=wide))
