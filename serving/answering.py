"""One model, some rows, ready JSON: what is cached and sent."""

from __future__ import annotations

import msgspec

from registry.errors import ModelFailed
from registry.features import Rows
from registry.model import LoadedModel

_encode = msgspec.json.Encoder().encode


def answer(model: LoadedModel, rows: Rows) -> list[bytes]:
    """One prediction a row, as JSON. Raises ModelFailed."""
    try:
        return [_encode(prediction) for prediction in model.predict(rows)]
    except ModelFailed:
        raise
    except Exception as error:
        # whatever an estimator raises on rows that fit its schema is the model's fault, not the client's
        raise ModelFailed(f"{model.name}/{model.version}: {type(error).__name__}: {error}") from error
