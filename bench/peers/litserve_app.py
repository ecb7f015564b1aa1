"""LitServe as its documentation shows it: a LitAPI, two inference workers, and as many that serve HTTP.

`MODEL=wine MODEL_DIR=models python -m bench.peers.litserve_app PORT`.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve

from bench.peers.artefact import Artefact


class Api(litserve.LitAPI):  # type: ignore[misc]
    """One row in, one prediction out."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it by name
        self.artefact = Artefact()

    def predict(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.artefact.predict(row)


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
