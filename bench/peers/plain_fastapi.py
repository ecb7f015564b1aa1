"""What a careful user writes by hand: FastAPI, a pydantic model, a sync route, the joblib model in every worker.

`MODEL=wine MODEL_DIR=models uvicorn bench.peers.plain_fastapi:app --workers 2`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, create_model

KINDS: dict[str, Any] = {"number": float, "integer": int, "boolean": bool, "category": str}

directory = Path(os.environ["MODEL_DIR"]) / os.environ["MODEL"] / "1"
manifest = json.loads((directory / "manifest.json").read_text())
model = joblib.load(directory / "model.joblib")


class Prediction(BaseModel):
    """The answer."""

    label: str | None = None
    value: float | None = None
    probabilities: dict[str, float] = {}


def _field(index: int, feature: dict[str, Any]) -> tuple[str, Any]:
    kind = KINDS[feature["kind"]]
    return f"f{index}", (kind | None if feature["nullable"] else kind, Field(alias=feature["name"]))


fields: dict[str, Any] = dict(_field(index, feature) for index, feature in enumerate(manifest["features"]))
Row = create_model("Row", __config__=ConfigDict(populate_by_name=True), **fields)

app = FastAPI()


@app.post("/predict")
def predict(row: Row) -> Prediction:  # type: ignore[valid-type]
    """One row in, one prediction out, as the tutorials show it."""
    values = row.model_dump(by_alias=True)  # type: ignore[attr-defined]
    table = pd.DataFrame([values]) if manifest["input"] == "frame" else np.array([list(values.values())])
    if manifest["task"] == "regression":
        return Prediction(value=float(model.predict(table)[0]))
    probabilities = model.predict_proba(table)[0]
    best = int(np.argmax(probabilities))
    return Prediction(
        label=str(model.classes_[best]),
        probabilities={str(label): float(p) for label, p in zip(model.classes_, probabilities, strict=True)},
    )
