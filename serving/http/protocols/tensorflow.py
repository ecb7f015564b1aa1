"""What TensorFlow Serving's REST interface has beside `:predict`: tensors by name, and what describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from registry.model import LoadedModel
from registry.outputs import Label, Target
from registry.rows.features import Feature
from serving.errors import InvalidRequest, NotJSON
from serving.http.protocols.tables import decode_outline
from serving.predict.operation import Verb, marks
from serving.predict.pieces import Turns

USAGE = 'send an object: {"inputs": {...}}'

KINDS = {"number": "DT_DOUBLE", "integer": "DT_INT64", "boolean": "DT_BOOL"}
"""Types of tensors by kinds of features; all others are strings."""

MEMBERS = (b'"inputs"', b'"signature_name"')
"""Members that only clients of TensorFlow Serving send."""

AVAILABLE = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


class InputsBody(msgspec.Struct, forbid_unknown_fields=True):
    """A body with `inputs` in place of `instances`; there is one signature, whatever its name."""

    inputs: msgspec.Raw
    signature_name: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"null")


_inputs = msgspec.json.Decoder(InputsBody)


def is_tensorflow(body: bytes) -> bool:
    """Whether a body that `:predict` does not take may be one of a client of TensorFlow Serving."""
    return any(member in body for member in MEMBERS)


async def decode_inputs(body: bytes, turns: Turns) -> InputsBody | None:
    """A body that has `inputs`; None for any other. Raises InvalidRequest for what is wrong beside them."""
    try:
        found: InputsBody = await decode_outline(_inputs, body, USAGE, turns)
    except InvalidRequest:
        if MEMBERS[0] in body and b'"instances"' not in body:
            raise
        return None
    except NotJSON:
        return None
    return found


def encode_outputs(model: LoadedModel, answers: Mapping[Verb, Sequence[bytes]]) -> bytes:
    """The answer to `inputs`: what `predictions` are to `instances`."""
    told = b"".join(b",%b" % msgspec.json.encode({name: value})[1:-1] for name, value in marks(model).items())
    return b'{"outputs":[%b]%b}' % (b",".join(answers["predict"]), told)


def version_status(versions: Sequence[str]) -> list[dict[str, Any]]:
    """The state of versions that are loaded."""
    return [{"version": version, **AVAILABLE} for version in versions]


def metadata(model: LoadedModel) -> dict[str, Any]:
    """The one signature of a model: a tensor for each feature, and one for each part of an answer."""
    inputs = {feature.name: _tensor(feature.name, _kind(feature)) for feature in model.manifest.features}
    outputs: dict[str, Any] = {}
    for target in model.layout.targets:
        prefix = f"{target.name}/" if model.layout.is_named else ""
        outputs |= {prefix + part: _output(prefix + part, part, target) for part in model.layout.parts}
    signature = {"inputs": inputs, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


def _kind(feature: Feature) -> str:
    if feature.kind == "category" and not feature.open:
        return _kind_of(feature.categories)
    return KINDS.get(feature.kind, "DT_STRING")


def _kind_of(labels: Sequence[Label]) -> str:
    """The type of a tensor of labels, or of categories."""
    kinds = {type(one) for one in labels}
    if str in kinds:
        return "DT_STRING"
    return "DT_BOOL" if kinds == {bool} else "DT_INT64" if kinds == {int} else "DT_DOUBLE"


def _output(name: str, part: str, target: Target) -> dict[str, Any]:
    if part == "label":
        return _tensor(name, _kind_of(target.classes) if target.classes else "DT_INT64")
    return _tensor(name, "DT_DOUBLE", *([len(target.classes)] if part in ("probabilities", "margins") else []))


def _tensor(name: str, kind: str, *sizes: int) -> dict[str, Any]:
    """A tensor whose first axis is the batch."""
    dimensions = [{"size": str(size), "name": ""} for size in (-1, *sizes)]
    return {"dtype": kind, "tensor_shape": {"dim": dimensions, "unknown_rank": False}, "name": name}
