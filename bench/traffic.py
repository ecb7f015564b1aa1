"""Endless requests of every kind that the service takes, none like another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count, cycle
from typing import Any
from urllib.parse import urlsplit

from harness.service import Service
from serving.cli.client import post


class Traffic:
    """Makes messages for a running service. `models` are those to ask; all that it serves if none are named."""

    def __init__(self, service: Service, *models: str) -> None:
        names = models or [model["name"] for model in service.get("/v1/models")["models"]]
        self._address = service.address
        self._models = cycle([service.get(f"/v1/models/{name}") for name in names])
        self._numbers = count()

    def infer(self, verb: str) -> Iterator[bytes]:
        """Predictions or explanations, the models in turn."""
        while True:
            model = next(self._models)
            body = json.dumps({"instances": [self._instance(model)]}).encode()
            yield post(f"{self._address}/v1/models/{model['name']}:{verb}", body)

    def entities(self, *names: str) -> Iterator[bytes]:
        """Questions about entities, in turn; all models that are bound answer each."""
        host = urlsplit(self._address).netloc
        for name in cycle(names):
            yield f"GET /v1/entities/{name}/predictions HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    def jobs(self, rows: int) -> Iterator[bytes]:
        """Predictions and explanations in turn, so many rows each."""
        for operation in cycle(("predict", "explain")):
            yield post(f"{self._address}/v1/jobs", self.job(operation, rows))

    def job(self, operation: str, rows: int) -> bytes:
        """The body of one."""
        model = next(self._models)
        instances = [self._instance(model) for _ in range(rows)]
        return json.dumps({"operation": operation, "model": model["name"], "instances": instances}).encode()

    def _instance(self, model: dict[str, Any]) -> dict[str, Any]:
        """The example with another value of its first number that has bounds."""
        example: dict[str, Any] = model["example"]
        for name, schema in model["schema"]["properties"].items():
            low, high = schema.get("minimum"), schema.get("maximum")
            if low is not None and high is not None and low < high and schema.get("type") != "integer":
                return example | {name: low + (high - low) * (next(self._numbers) % 1_000_003) / 1_000_003}
        return example
