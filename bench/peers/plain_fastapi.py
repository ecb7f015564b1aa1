"""The app that a careful user writes by hand: FastAPI, a pydantic model, a sync route, the joblib model per worker.

`MODEL=wine MODEL_DIR=models uvicorn bench.peers.plain_fastapi:app --workers 2`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, create_model

from bench.peers.artefact import Artefact

KINDS: dict[str, Any] = {"number": float, "integer": int, "boolean": bool, "category": str, "text": str}

artefact = Artefact()


class Prediction(BaseModel):
    """The answer."""

    label: str | None = None
    value: float | None = None
    probabilities: dict[str, float] = {}


def _field(index: int, feature: dict[str, Any]) -> tuple[str, Any]:
    kind = KINDS[feature["kind"]]
    return f"f{index}", (kind | None if feature["nullable"] else kind, Field(alias=feature["name"]))


fields: dict[str, Any] = dict(_field(index, feature) for index, feature in enumerate(artefact.manifest["features"]))
Row = create_model("Row", __config__=ConfigDict(populate_by_name=True), **fields)

app = FastAPI()


@app.post("/predict")
def predict(row: Row) -> Prediction:  # type: ignore[valid-type]
    """One row in, one prediction out."""
    return Prediction(**artefact.predict(row.model_dump(by_alias=True)))  # type: ignore[attr-defined]
