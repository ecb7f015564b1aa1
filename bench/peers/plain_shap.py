"""A hand-written app that explains as well: shap.TreeExplainer in every worker, in a sync route.

`MODEL=breast-cancer MODEL_DIR=models uvicorn bench.peers.plain_shap:app --workers 2`.
"""

from __future__ import annotations

import numpy as np
import shap
from pydantic import BaseModel

from bench.peers.plain_fastapi import Row, app, artefact

explainer = shap.TreeExplainer(artefact.model)


class Explanation(BaseModel):
    """The answer, for the second class."""

    base_value: float
    values: list[float]


class Rows(BaseModel):
    """Several rows at once."""

    rows: list[list[float]]


@app.post("/explain")
def explain(row: Row) -> Explanation:
    """One row in, one explanation out."""
    values = list(row.model_dump(by_alias=True).values())
    return explained([values])[0]


@app.post("/explain-many")
def explain_many(rows: Rows) -> list[Explanation]:
    """Rows in, explanations out."""
    return explained(rows.rows)


def explained(rows: list[list[float]]) -> list[Explanation]:
    values = np.asarray(explainer.shap_values(np.array(rows)))[:, :, 1]
    base = float(np.ravel(explainer.expected_value)[1])
    return [Explanation(base_value=base, values=row) for row in values.tolist()]
