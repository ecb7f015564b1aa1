"""Reads the rows of a request from its body: fast if it is valid, a second time to explain its faults."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from registry.errors import InvalidSelection
from registry.explain.explanation import Selection
from registry.explain.shap_values import Space
from registry.model import LoadedModel
from registry.outputs import Label
from registry.rows.decoding import InstanceDecoder
from registry.rows.features import Rows
from serving.errors import TooManyInstances
from serving.predict.json_body import decode
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

    def selection(self, verb: Verb, model: LoadedModel) -> Selection:
        """What is to be shown. Raises InvalidSelection, NotExplained.

        Predictions take the parameters of explanations, which change nothing, but refuse those that no explanation has.
        """
        if self == NO_PARAMETERS:
            return EVERYTHING
        shown = Selection(cast("Any", self.classes), self.top, self.space)  # `check` refuses other strings
        shown.check(model.labels)
        if verb == "predict":
            if self.space is not None:
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


_any = msgspec.json.Decoder(Body)


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
            [("instances", instances), ("parameters", Parameters | None, None)],
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
        return self._look_at(body) if rows is None else (rows, decoded.parameters or NO_PARAMETERS)

    def _look_at(self, body: bytes) -> tuple[Rows, Parameters]:
        """Read the body the slow way, which can explain its faults."""
        decoded = decode(_any, body, USAGE)
        if len(decoded.instances) > self._max_instances:
            raise TooManyInstances(f"a request may have {self._max_instances} instances; send more as several requests")
        return self._schema.rows(decoded.instances), decoded.parameters or NO_PARAMETERS
