"""Reads the rows of a request from its body: fast if it is valid, a second time to explain its faults."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from registry.errors import InvalidSelection
from registry.explain.explanation import Selection
from registry.explain.shap_values import Space
from registry.model import LoadedModel
from registry.outputs import Label
from registry.rows.decoding import InstanceDecoder
from registry.rows.features import Rows
from registry.rows.schema import MAX_LEVELS, depth
from serving.errors import InvalidRequest, NotJSON, TooManyInstances
from serving.predict.operation import EVERYTHING, Verb

USAGE = 'send an object: {"instances": [...]}'


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a request besides its instances.

    `coverage` adds intervals or sets of labels to predictions, which show every class anyway; all others shape
    explanations.
    """

    classes: str | tuple[Label, ...] = "predicted"
    top: int | None = None
    space: Space | None = None
    coverage: float | None = None

    def selection(self, verb: Verb) -> Selection:
        """What is to be shown. Raises InvalidSelection."""
        if verb == "predict":
            return EVERYTHING if self.coverage is None else Selection(coverage=self.coverage)
        if self.coverage is not None:
            raise InvalidSelection("coverage is a parameter of predictions")
        if isinstance(self.classes, tuple):
            return Selection(self.classes, self.top, self.space)
        if self.classes not in ("predicted", "all"):
            raise InvalidSelection("classes must be 'predicted', 'all', or some of the model's classes")
        return Selection("all" if self.classes == "all" else "predicted", self.top, self.space)


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request whose instances are not checked yet."""

    instances: list[Any]
    parameters: Parameters = Parameters()


_any = msgspec.json.Decoder(Body)

T = TypeVar("T")


class Reader:
    """Reads the rows of one model from bodies."""

    def __init__(self, model: LoadedModel, max_instances: int) -> None:
        self._schema = model.schema
        self._max_instances = max_instances
        self._instances: InstanceDecoder | None = None
        if not InstanceDecoder.fits(model.manifest.features):
            return
        self._instances = InstanceDecoder(model.manifest.features)
        instances = list[self._instances.type]  # type: ignore[name-defined]
        body = msgspec.defstruct(
            "ModelBody",
            [("instances", instances), ("parameters", Parameters, Parameters())],
            forbid_unknown_fields=True,
        )
        self._decode = msgspec.json.Decoder(body).decode

    def read(self, body: bytes) -> tuple[Rows, Parameters]:
        """Rows of shape (instances, features). Raises NotJSON, InvalidRequest, TooManyInstances, InvalidRows."""
        if self._instances is None:
            return self._look_at(body)
        try:
            decoded: Any = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._look_at(body)
        if len(decoded.instances) > self._max_instances:
            return self._look_at(body)
        rows = self._instances.rows(decoded.instances)
        return self._look_at(body) if rows is None else (rows, decoded.parameters)

    def _look_at(self, body: bytes) -> tuple[Rows, Parameters]:
        """Read the body the slow way, which can explain its faults."""
        decoded = decode(_any, body, USAGE)
        if len(decoded.instances) > self._max_instances:
            raise TooManyInstances(f"a request may have {self._max_instances} instances; send more as several requests")
        return self._schema.rows(decoded.instances), decoded.parameters


def decode(decoder: msgspec.json.Decoder[T], body: bytes, usage: str) -> T:
    """Decode a body; `usage` is the message for one of another shape. Raises NotJSON, InvalidRequest."""
    try:
        return decoder.decode(body)
    except RecursionError:
        raise NotJSON("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise NotJSON("the body is not UTF-8") from None
    except msgspec.ValidationError as error:
        raise _misfit(body, error, usage) from None
    except msgspec.DecodeError as error:
        raise NotJSON(f"the body is not JSON: {str(error)[:200]}") from None


def _misfit(body: bytes, error: msgspec.ValidationError, usage: str) -> NotJSON | InvalidRequest:
    """The error for JSON of another shape; a number that fits no machine type counts as invalid JSON."""
    reason = str(error)
    if len(reason) > 160 or not reason.isprintable():
        reason = usage  # it quotes the name of an unknown field, which is the client's own text
    if "out of range" in reason:
        return NotJSON(reason)
    try:
        value = msgspec.json.decode(body)
    except (RecursionError, ValueError):
        return NotJSON(reason)
    if not isinstance(value, dict) or depth(value) > MAX_LEVELS:
        return NotJSON(usage)
    return InvalidRequest(reason)
