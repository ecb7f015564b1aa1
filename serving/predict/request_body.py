"""Reads the rows of a request from its body: fast if it is valid, a second time to explain its faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
import numpy as np

from registry.errors import Fault, InvalidRows, InvalidSelection, NestedTooDeep
from registry.explain.explanation import Selection
from registry.explain.shap_values import Space
from registry.model import LoadedModel
from registry.outputs import Label
from registry.rows.decoding import InstanceDecoder
from registry.rows.features import MAX_TEXT_CHARACTERS, Feature, Rows
from serving.errors import InvalidRequest, TooManyInstances
from serving.predict.json_body import MAX_EXPLAINED_BYTES, decode, refuse_shape
from serving.predict.operation import EVERYTHING, Verb
from serving.predict.pieces import SLOW_NUMBER, ElementTooLarge, Piece, Turns, finite_number, split

USAGE = 'send an object: {"instances": [...]}'
TOO_MANY = "a request may have {} instances; send more as several requests"

WHOLE_BYTES = 1 << 20
"""Valid instances in a body of this size are decoded at once, in 5 to 20 ms; only what is invalid may take longer."""

MAX_PARAMETERS_BYTES = 16 * 1024

MANY_NUMBERS_BYTES = 1024
"""A body of this size may hold so many slow numbers that they are looked for."""


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a request besides its instances.

    `coverage` adds intervals or sets of labels to predictions, which show every class anyway; all others shape
    explanations.
    """

    classes: str | tuple[Label, ...] = "predicted"
    top: float | None = None
    """A whole number, which JSON also writes as 3.0."""
    space: Space | None = None
    coverage: float | None = None
    interactions: bool = False

    def selection(self, verb: Verb, model: LoadedModel) -> Selection:
        """What is to be shown. Raises InvalidSelection, NotExplained.

        Predictions take the parameters of explanations, which change nothing, but refuse those that no explanation has.
        """
        if self == NO_PARAMETERS:
            return EVERYTHING
        if self.top is not None and self.top % 1:
            raise InvalidSelection("top must be a whole number")
        top = None if self.top is None else int(self.top)
        classes = cast("Any", self.classes)  # `check` refuses other strings
        shown = Selection(classes, top, self.space, interactions=self.interactions)
        shown.check(model.labels)
        if verb == "predict":
            if self.space is not None or self.interactions:
                model.explainer_for(shown)
            return Selection(coverage=self.coverage)
        if self.coverage is not None:
            raise InvalidSelection("coverage is a parameter of predictions")
        return shown


NO_PARAMETERS = Parameters()


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request whose instances are not checked yet."""

    instances: list[Any]
    parameters: Parameters | None = None
    signature_name: str | None = None
    """Ignored: clients of TensorFlow Serving name the only signature that there is."""


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a large request, whose members are decoded one after the other."""

    instances: msgspec.Raw
    parameters: msgspec.Raw = msgspec.Raw(b"null")
    signature_name: str | None = None


class _OnlyParameters(msgspec.Struct):
    parameters: Parameters | None


_any = msgspec.json.Decoder(Body, float_hook=finite_number)
_envelope = msgspec.json.Decoder(Envelope)
_parameters = msgspec.json.Decoder(_OnlyParameters)
_raws = msgspec.json.Decoder(list[msgspec.Raw])


def read_parameters(content: msgspec.Raw) -> Parameters:
    """The parameters of a large request. Raises NotJSON, InvalidRequest."""
    sent = bytes(content)
    if len(sent) > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(f"parameters may have {MAX_PARAMETERS_BYTES} bytes")
    return decode(_parameters, b'{"parameters":%b}' % sent, USAGE).parameters or NO_PARAMETERS


class Reader:
    """Reads the rows of one model from bodies."""

    def __init__(self, model: LoadedModel, max_instances: int, too_many: str = TOO_MANY) -> None:
        """`too_many` is the message for more than `max_instances`."""
        self._schema = model.schema
        self._max_instances = max_instances
        self._too_many_message = too_many
        self._max_bytes = MAX_EXPLAINED_BYTES + sum(map(_usual_bytes, model.manifest.features))
        self._instances: InstanceDecoder | None = None
        if not InstanceDecoder.fits(model.manifest.features):
            return
        self._instances = InstanceDecoder(model.manifest.features)
        instances = list[self._instances.type]  # type: ignore[name-defined]
        body = msgspec.defstruct(
            "ModelBody",
            [("instances", instances), ("parameters", Parameters | None, None), ("signature_name", str | None, None)],
            forbid_unknown_fields=True,
        )
        self._decode = msgspec.json.Decoder(body).decode

    def read(self, body: bytes) -> tuple[Rows, Parameters]:
        """Rows of shape (instances, features). Raises NotJSON, InvalidRequest, TooManyInstances, InvalidRows.

        For bodies of up to PIECE_BYTES; `read_large` does not keep the event loop.
        """
        return self.read_valid(body) or self._look_at(body)

    async def read_large(self, body: bytes, turns: Turns) -> tuple[Rows, Parameters]:
        """Read a body of any size, some instances at a time. Raises what `read` raises, and what `turns` raise."""
        found = self.read_valid(body) if len(body) <= WHOLE_BYTES else None
        if found is not None:
            return found
        await turns.pause()
        parts = decode(_envelope, body, USAGE)
        parameters = read_parameters(parts.parameters)
        rows = [some async for some in self.read_array(parts.instances, turns)]
        return np.concatenate(rows), parameters

    async def read_array(
        self, instances: msgspec.Raw, turns: Turns, rewrite: Callable[[bytes], bytes] | None = None
    ) -> AsyncIterator[Rows]:
        """The rows of an array of instances, some at a time; all faults are raised at the end, or when there are many.

        `rewrite` turns an array of some elements into the instances that they stand for.

        Raises InvalidRows, TooManyInstances, NotJSON, InvalidRequest, and what `turns` raise.
        """
        if memoryview(instances)[0] != ord("["):
            raise refuse_shape(b'{"instances":%b}' % bytes(instances), "instances must be an array")
        faults: list[Fault] = []
        kind = b""
        try:
            for piece in split(instances, self._max_bytes):
                if piece.first + piece.count > self._max_instances:
                    raise self._too_many()
                kind = kind or piece.kind
                try:
                    yield self._read_piece(piece, kind, rewrite)
                except InvalidRows as error:
                    faults += [Fault(piece.first + one.instance, one.feature, one.reason) for one in error.faults]
                    if type(error) is not InvalidRows or len(faults) >= InvalidRows.LIMIT:
                        raise type(error)(faults) from None
                await turns.pause()
        except ElementTooLarge as error:
            faults.append(Fault(error.index, None, self._describe(error)))
            if error.is_deep:
                raise NestedTooDeep(faults) from None
        if not faults and not kind:
            faults.append(Fault(0, None, "there must be at least one instance"))
        if faults:
            raise InvalidRows(faults)

    def _read_piece(self, piece: Piece, kind: bytes, rewrite: Callable[[bytes], bytes] | None) -> Rows:
        """The rows of a piece of an array whose first element begins with the byte `kind`."""
        if piece.kind != kind:
            shape = {b"{": "an object, like the first", b"[": "an array, like the first"}
            raise InvalidRows([Fault(0, None, f"must be {shape.get(kind, 'an object or an array')}")])
        instances = piece.content if rewrite is None else rewrite(piece.content)
        return self.read(b'{"instances":%b}' % instances)[0]

    def read_valid(self, body: bytes) -> tuple[Rows, Parameters] | None:
        """Read the body the quick way; None if it is invalid or may take long. Raises TooManyInstances."""
        if self._instances is None or (len(body) > MANY_NUMBERS_BYTES and SLOW_NUMBER.search(body)):
            return None
        try:
            decoded: Any = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if len(decoded.instances) > self._max_instances:
            raise self._too_many()
        rows = self._instances.rows(decoded.instances)
        return None if rows is None else (rows, decoded.parameters or NO_PARAMETERS)

    def _look_at(self, body: bytes) -> tuple[Rows, Parameters]:
        """Read the body the slow way, which can explain its faults."""
        decoded = decode(_any, body, USAGE)
        if len(decoded.instances) > self._max_instances:
            raise self._too_many()
        return self._schema.rows(decoded.instances), decoded.parameters or NO_PARAMETERS

    def _too_many(self) -> TooManyInstances:
        return TooManyInstances(self._too_many_message.format(self._max_instances))

    def _describe(self, error: ElementTooLarge) -> str:
        """The fault of an instance that is too large to be looked at."""
        if len(error.rest) <= WHOLE_BYTES and not error.is_deep:
            try:
                values = len(_raws.decode(error.rest))
            except msgspec.MsgspecError:
                return str(error)
            if values != len(self._schema):
                return f"must have {len(self._schema)} values, has {values}"
        return str(error)


def _usual_bytes(feature: Feature) -> int:
    """The bytes that a feature may need in an instance: a character has up to twelve, as two escapes."""
    texts = {"text": feature.max_length, "category": MAX_TEXT_CHARACTERS if feature.open else 0}
    return 12 * (len(feature.name) + texts.get(feature.kind, 0)) + 64
