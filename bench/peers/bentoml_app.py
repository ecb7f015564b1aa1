"""BentoML as its documentation shows it: a service class with two workers and an API method.

`MODEL=wine MODEL_DIR=models bentoml serve bench.peers.bentoml_app:Model --port PORT`.
"""

from __future__ import annotations

from typing import Any

import bentoml

from bench.peers.artefact import Artefact


@bentoml.service(workers=2)
class Model:
    """One row in, one prediction out."""

    def __init__(self) -> None:
        self.artefact = Artefact()

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, row: dict[str, Any]) -> dict[str, Any]:
        """The model's prediction for a row."""
        return self.artefact.predict(row)
