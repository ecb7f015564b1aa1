"""Retraining a model: its script, candidates, metrics, promotion."""

from __future__ import annotations

from registry.training.script import Trained, TrainingData

# `train.py` files that were written before `forkserve` existed import these from here
__all__ = ["Trained", "TrainingData"]
