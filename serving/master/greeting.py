"""What `forkserve serve` tells a person: where the server is, and a line to paste."""

from __future__ import annotations

import json
import shlex

from registry.registry import Registry


def greeting(address: str, registry: Registry) -> str:
    """The address, and a curl line for the model whose example is the shortest."""
    model = min(registry.live(), key=lambda model: len(model.manifest.features))
    body = shlex.quote(json.dumps({"instances": [model.manifest.example]}))
    url = f"{address}/v1/models/{model.name}:predict"
    return (
        f"\nforkserve serves {len(registry)} models at {address}\n"
        f"Try:\n\n"
        f"  curl -s {url} -H 'Content-Type: application/json' -d {body}\n"
    )
