"""The joblib model as a user's own code asks it: the same lines behind every hand-written peer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd


class Artefact:
    """Version 1 of the model that MODEL names, from the directory that MODEL_DIR names."""

    def __init__(self) -> None:
        directory = Path(os.environ["MODEL_DIR"]) / os.environ["MODEL"] / "1"
        self.manifest = json.loads((directory / "manifest.json").read_text())
        self.model = joblib.load(directory / "model.joblib")

    def predict(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row by feature name in, one prediction out, as the tutorials show it."""
        table: Any = list(row.values())  # of one text
        if self.manifest["input"] != "series":
            table = pd.DataFrame([row]) if self.manifest["input"] == "frame" else np.array([table])
        if self.manifest["task"] == "regression":
            return {"value": float(self.model.predict(table)[0])}
        probabilities = self.model.predict_proba(table)[0]
        best = int(np.argmax(probabilities))
        return {
            "label": str(self.model.classes_[best]),
            "probabilities": {
                str(label): float(p) for label, p in zip(self.model.classes_, probabilities, strict=True)
            },
        }
