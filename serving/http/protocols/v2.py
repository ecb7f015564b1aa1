"""The Open Inference Protocol v2 over REST, with the extension for binary tensor data.

Rows come as one matrix tensor of any name, or as a column for each feature by its name; what is sent beside them
(`model_name`, unknown members and parameters) changes nothing. Answers hold `predict`, and the probabilities or margins
of classes if there are any; `outputs` may ask for others. `id` and `parameters` are repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeAlias, cast

import msgspec

from registry.estimator import Outputs
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.outputs import Label, both_margins
from registry.registry import Registry
from serving.errors import InvalidRequest, NotJSON, UnsupportedBody
from serving.http.body import HeaderMap, body_type, turns_of_client
from serving.http.protocols.route import PREDICTIONS, Protocol, ProtocolAnswer, Question, Received
from serving.http.protocols.tensors import (
    TEXTS,
    InputTensor,
    OutputTensor,
    RowMaker,
    Tensor,
    read_binary,
    read_json,
)
from serving.predict.json_body import decode
from serving.predict.operation import EVERYTHING, Verb, marks
from serving.predict.pieces import PIECE_BYTES, Turns, split
from serving.predict.request_body import MAX_PARAMETERS_BYTES

USAGE = 'send an object: {"inputs": [{"name": ..., "shape": [rows, columns], "datatype": "FP64", "data": [...]}]}'

HEADER_LENGTH = b"inference-header-content-length"
BINARY_TYPE = b"application/octet-stream"
JSON_TYPE = b"application/json"

CONTENT_TYPES = ("pd", "np", "str", "datetime")
"""The parameters `content_type` that MLServer's clients write; what they say is in names and datatypes, too."""

REMEMBERED = 256
MAX_REMEMBERED_BYTES = 1024
"""Bytes of JSON before binary data that are read once and then remembered, and how many of them."""

MAX_BRACES = 2048
"""Inputs with so few braces are so few that they are decoded at once; to find where each ends takes much longer."""

EXPLAIN = "explain"
BASE_VALUE = "explain_base_value"
EXPLAINED_OUTPUT = "explain_output"
EXPLANATION = (EXPLAIN, BASE_VALUE, EXPLAINED_OUTPUT)
"""The tensors of an explanation: a column for each name that explanations show, the base value, and the output."""

Parameters: TypeAlias = dict[str, Any] | None


class RequestedOutput(msgspec.Struct, gc=False):
    """A tensor that a request asks for."""

    name: str
    parameters: Parameters = None


class InferenceRequest(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = None
    id: str | None = None
    parameters: Parameters = None


class RequestOutline(msgspec.Struct):
    """The JSON of a large request, whose members are decoded one after the other."""

    inputs: msgspec.Raw
    outputs: msgspec.Raw = msgspec.Raw(b"null")
    id: msgspec.Raw = msgspec.Raw(b"null")
    parameters: msgspec.Raw = msgspec.Raw(b"null")


_request = msgspec.json.Decoder(InferenceRequest)
_outline = msgspec.json.Decoder(RequestOutline)
_inputs: msgspec.json.Decoder[list[InputTensor]] = msgspec.json.Decoder(list[InputTensor])
_any = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


@dataclass(eq=False, slots=True)
class InferenceQuestion(Question):
    """A question whose answer repeats what its body says."""

    names: Sequence[str] = ()
    """The tensors to answer with, in order."""
    binary: frozenset[str] = frozenset()
    """Those of them that are answered as bytes."""
    sent: InferenceRequest | None = None


@dataclass(frozen=True, eq=False)
class ModelTensors:
    """The tensors that a model takes and makes."""

    model: LoadedModel

    @cached_property
    def rows(self) -> RowMaker:
        return RowMaker(self.model)

    @cached_property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        """Datatype and number of columns of all outputs by name, the default ones first."""
        layout, targets = self.model.layout, len(self.model.layout.targets)
        found = {"predict": (self._datatype, targets)}
        if "probabilities" in layout.parts:
            found |= {name: ("FP64", len(self.model.target_labels[place])) for name, place in self._shares.items()}
        if self._decides_by_number:
            found["decision_function"] = ("FP64", max(1, len(layout.targets[0].classes)))
        return {**found, **self._further}

    @cached_property
    def _shares(self) -> Mapping[str, int]:
        """The names of the tensors of probabilities, and the places of their targets."""
        layout = self.model.layout
        if not layout.is_named:
            return {"predict_proba": 0}
        return {f"predict_proba.{target.name}": place for place, target in enumerate(layout.targets)}

    @property
    def _decides_by_number(self) -> bool:
        """True if there are margins, or a score beside a label."""
        return len(self.model.layout.parts) == 2 and self.model.layout.parts[1] in ("margins", "score")

    @cached_property
    def _further(self) -> Mapping[str, tuple[str, int]]:
        """The outputs that are made only if a request asks for them."""
        found: dict[str, tuple[str, int]] = {}
        if {"label", "probabilities"} & set(self.model.layout.parts):
            found["label"] = (self._datatype, len(self.model.layout.targets))
        if self.model.explainer is not None and not self.model.layout.is_named:
            found |= {EXPLAIN: ("FP64", len(self.model.names.shown()))}
            found |= {BASE_VALUE: ("FP64", 1), EXPLAINED_OUTPUT: ("FP64", 1)}
        return found

    @cached_property
    def defaults(self) -> tuple[str, ...]:
        """The outputs of an answer whose request names none."""
        return tuple(name for name in self.columns if name not in self._further)

    @cached_property
    def _datatype(self) -> str:
        """That of what the estimator's `predict` returns."""
        layout = self.model.layout
        if layout.parts[0] in ("value", "score"):
            return "FP64"
        kinds = {type(label) for target in layout.targets for label in target.classes}
        if kinds <= {int}:
            return "INT64"  # of clusters and outliers, too, which have no classes
        if kinds == {bool}:
            return "BOOL"
        return "FP64" if kinds <= {int, float} else TEXTS

    def tensor(self, name: str, outputs: Outputs) -> OutputTensor:
        """One of the tensors of predictions, from outputs of shape (rows, width)."""
        datatype, columns = self.columns[name]
        if name in ("predict", "label"):
            return OutputTensor(name, datatype, columns, self._predicted(outputs))
        places = self.model.layout.columns[self._shares.get(name, 0)]
        if name != "decision_function":
            cells = outputs[:, places["probabilities"]]
        elif "margins" in places:
            cells = both_margins(outputs[:, places["margins"]])
        else:
            cells = outputs[:, places["score"]]
        return OutputTensor(name, datatype, columns, cells.ravel())

    def _predicted(self, outputs: Outputs) -> Any:
        """What the estimator's `predict` returns, row by row."""
        layout = self.model.layout
        if layout.parts[0] in ("value", "score"):
            return outputs.ravel()
        each = [self._labels(target.classes, outputs, place) for place, target in enumerate(layout.targets)]
        return each[0] if len(each) == 1 else [label for row in zip(*each, strict=True) for label in row]

    def _labels(self, classes: Sequence[Label], outputs: Outputs, target: int) -> list[Any]:
        indices: list[int] = self.model.layout.label_indices(outputs, target).tolist()
        if not classes:
            return indices
        shown = self.model.target_labels[target].texts if self._datatype == TEXTS else classes
        return [shown[index] for index in indices]

    def made(self, name: str, outputs: Outputs | None, explanations: Sequence[Mapping[str, Any]]) -> OutputTensor:
        """One of the tensors of an answer."""
        return (
            self.explanation(name, explanations) if name in EXPLANATION else self.tensor(name, cast("Outputs", outputs))
        )

    def explanation(self, name: str, answers: Sequence[Mapping[str, Any]]) -> OutputTensor:
        """One of the tensors of explanations."""
        datatype, columns = self.columns[name]
        if name == EXPLAIN:
            cells = [value for answer in answers for value in answer["values"].values()]
        else:
            cells = [answer["base_value" if name == BASE_VALUE else "output"] for answer in answers]
        return OutputTensor(name, datatype, columns, cells)


@dataclass(eq=False, slots=True)
class _Wanted:
    """The tensors of an answer."""

    names: Sequence[str]
    binary: frozenset[str] = frozenset()
    selections: Mapping[Verb, Selection] = field(default_factory=lambda: PREDICTIONS)


class V2(Protocol):
    """Reads tensors and answers tensors."""

    path = re.compile(r"/v2/models/(?P<model>[^/]*)(?:/versions/(?P<version>[^/]*))?/infer", re.DOTALL)

    def __init__(self, registry: Registry, max_rows: int) -> None:
        self._max_rows = max_rows
        self._tensors = {model: ModelTensors(model) for model in registry}
        # a client's JSON before binary data is the same each time, and so is that of its answers
        self._remembered = lru_cache(REMEMBERED)(self._parsed)
        self._remembered_head = lru_cache(REMEMBERED)(_binary_head)

    def tensors(self, model: LoadedModel) -> ModelTensors:
        """What a model takes and makes."""
        return self._tensors[model]

    async def read(self, model: LoadedModel, request: Received) -> InferenceQuestion:
        check_type(request.headers)
        if len(request.body) <= PIECE_BYTES:
            return await self._read(model, request, Turns())
        with turns_of_client(request.receive) as turns:
            return await self._read(model, request, turns)

    async def _read(self, model: LoadedModel, request: Received, turns: Turns) -> InferenceQuestion:
        body = request.body
        end = header_length(request.headers, len(body))
        content = body if end is None else body[:end]
        tensors = self._tensors[model]
        if end is not None and end <= MAX_REMEMBERED_BYTES:
            sent, wanted = self._remembered(tensors, content)
        elif len(content) <= PIECE_BYTES:
            sent, wanted = self._parsed(tensors, content)
        else:
            sent, wanted = self._checked(tensors, await _read_large(content, turns))
        binary = memoryview(body)[len(content) :]
        found, place = [], 0
        for head in sent.inputs:
            size = binary_size(head)
            if size is None:
                cells = await read_json(head, turns)
            else:
                if place + size > len(binary):
                    raise head.wrong("binary_data_size is more than the rest of the body has")
                cells = await read_binary(head, binary[place : place + size], turns)
                place += size
            found.append(Tensor(head, cells))
        if place != len(binary):
            raise InvalidRequest(f"the body has {len(binary) - place} bytes more than its tensors")
        rows = await tensors.rows.rows(found, turns)
        return InferenceQuestion(
            rows,
            wanted.selections,
            as_outputs=True,
            look_up=end is None,
            names=wanted.names,
            binary=wanted.binary,
            sent=sent,
        )

    def _parsed(self, tensors: ModelTensors, content: bytes) -> tuple[InferenceRequest, _Wanted]:
        return self._checked(tensors, decode(_request, content, USAGE))

    def _checked(self, tensors: ModelTensors, sent: InferenceRequest) -> tuple[InferenceRequest, _Wanted]:
        """A request, and what it wants, before one looks at the elements of its tensors.

        Raises InvalidRequest, TooManyInstances, InvalidSelection, NotExplained.
        """
        features = len(tensors.model.schema)
        if not 1 <= len(sent.inputs) <= features:
            raise InvalidRequest(f"there must be at least one input, and at most one for each of {features} features")
        for head in sent.inputs:
            head.check(self._max_rows, features)
            check_parameters(head.parameters)
        tensors.rows.is_matrix(sent.inputs)
        check_parameters(sent.parameters)
        return sent, _wanted(sent, tensors)

    def write(self, model: LoadedModel, question: Question) -> ProtocolAnswer:
        assert isinstance(question, InferenceQuestion)
        assert question.sent is not None
        tensors = self._tensors[model]
        explanations = [_any.decode(answer) for answer in question.answers.get("explain", ())]
        made = [tensors.made(name, question.outputs, explanations) for name in question.names]
        contents = [one.as_bytes() for one in made if one.name in question.binary]
        parameters = _repeated(question.sent.parameters) | marks(model)
        if len(contents) == len(made) and question.sent.id is None and not parameters:
            sizes = tuple(map(len, contents))
            head = self._remembered_head(tensors, tuple(question.names), len(question.rows), sizes)
        else:
            lengths = iter(contents)
            heads = [one.head(len(next(lengths))) if one.name in question.binary else one.as_json() for one in made]
            head = _answer_head(model, heads, question.sent.id, parameters)
        if not contents:
            return ProtocolAnswer(JSON_TYPE, head)
        return ProtocolAnswer(BINARY_TYPE, b"".join((head, *contents)), [(HEADER_LENGTH, b"%d" % len(head))])


def _binary_head(tensors: ModelTensors, names: Sequence[str], rows: int, sizes: Sequence[int]) -> bytes:
    """The JSON of an answer whose tensors are all bytes, of these sizes."""
    heads = [
        OutputTensor.describe(name, *tensors.columns[name], rows, size) for name, size in zip(names, sizes, strict=True)
    ]
    return _answer_head(tensors.model, heads)


def _answer_head(
    model: LoadedModel, outputs: Sequence[Any], request_id: str | None = None, parameters: Parameters = None
) -> bytes:
    """The JSON of an answer."""
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request_id is not None:
        answer["id"] = request_id
    if parameters:
        answer["parameters"] = parameters
    return _encode(answer | {"outputs": outputs})


def _repeated(parameters: Parameters) -> dict[str, Any]:
    """The parameters of a request as its answer repeats them: without the one that is about the transport."""
    return {name: value for name, value in (parameters or {}).items() if name != "binary_data_output"}


def check_type(headers: HeaderMap) -> None:
    """Raise UnsupportedBody for other content than JSON and bytes; clients of Triton do not say what they send."""
    sent = headers.get(b"content-type")
    if sent not in (None, b"", JSON_TYPE, BINARY_TYPE) and body_type(headers) not in (JSON_TYPE, BINARY_TYPE):
        raise UnsupportedBody("send application/json in UTF-8, application/octet-stream, or no content type")


def header_length(headers: HeaderMap, size: int) -> int | None:
    """The bytes of JSON before the binary data of a body of `size`; None if it has none. Raises NotJSON."""
    given = headers.get(HEADER_LENGTH)
    if given is None:
        return None
    if not given.isdigit() or len(given) > 18 or int(given) > size:
        raise NotJSON("Inference-Header-Content-Length must be a number, and at most the size of the body")
    return int(given)


def binary_size(head: InputTensor) -> int | None:
    """The bytes of a tensor that follow the JSON; None if its data is in there. Raises InvalidRequest."""
    size = (head.parameters or {}).get("binary_data_size")
    if size is None:
        if not memoryview(head.data):
            raise head.wrong("has neither data nor the parameter binary_data_size")
        return None
    if type(size) is not int or size < 0:
        raise head.wrong("binary_data_size must be a whole number, at least 0")
    if memoryview(head.data):
        raise head.wrong("has both data and binary_data_size")
    return size


def check_parameters(parameters: Parameters) -> None:
    """Raise InvalidRequest for parameters that would change what the elements of tensors are."""
    if not parameters:
        return
    if parameters.get("content_type") not in (None, *CONTENT_TYPES):
        raise InvalidRequest(f"content_type must be one of {', '.join(CONTENT_TYPES)}")
    if "shared_memory_region" in parameters:
        raise InvalidRequest("tensors in shared memory are not supported; send their data")


async def _read_large(content: bytes, turns: Turns) -> InferenceRequest:
    """Read JSON of any size, an input at a time; their elements come later."""
    outline = decode(_outline, content, USAGE)
    others = b'"outputs":%b,"id":%b,"parameters":%b' % (outline.outputs, outline.id, outline.parameters)
    if len(others) > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(f"outputs, id and parameters may have {MAX_PARAMETERS_BYTES} bytes together")
    await turns.pause()
    inputs = bytes(outline.inputs)
    if not inputs.startswith(b"["):
        raise InvalidRequest(USAGE)
    sent = decode(_request, b'{"inputs":[],%b}' % others, USAGE)
    if inputs.count(b"{") <= MAX_BRACES:
        sent.inputs = decode(_inputs, inputs, USAGE)
        return sent
    for piece in split(inputs, len(inputs)):
        await turns.pause()
        some: list[InputTensor] = decode(_inputs, piece.content, USAGE)
        sent.inputs += some
    return sent


def _wanted(sent: InferenceRequest, tensors: ModelTensors) -> _Wanted:
    """What a request asks for. Raises InvalidRequest, InvalidSelection, NotExplained."""
    is_binary = bool((sent.parameters or {}).get("binary_data_output"))
    if not sent.outputs:
        return _Wanted(tensors.defaults, frozenset(tensors.defaults if is_binary else ()))
    names: dict[str, bool] = {}
    selections: dict[Verb, Selection] = {}
    for one in sent.outputs:
        if one.name not in tensors.columns:
            raise InvalidRequest(f"outputs must be among {', '.join(tensors.columns)}")
        parameters = one.parameters or {}
        check_parameters(parameters)
        if parameters.get("classification"):
            raise InvalidRequest("classification is not supported: ask for label, or predict_proba")
        if one.name in EXPLANATION:
            selections["explain"] = _selection(parameters, tensors.model)
        else:
            selections["predict"] = EVERYTHING
        for name in EXPLANATION if one.name == EXPLAIN else (one.name,):
            names[name] = bool(parameters.get("binary_data", is_binary))
    return _Wanted(list(names), frozenset(name for name, wanted in names.items() if wanted), selections)


def _selection(parameters: Mapping[str, Any], model: LoadedModel) -> Selection:
    """The explanation that an output's parameters ask for. Raises InvalidSelection, NotExplained."""
    if "space" not in parameters:
        return EVERYTHING
    selection = Selection(space=parameters["space"])
    if not isinstance(selection.space, str):
        raise InvalidRequest("the parameter space must be a string")
    model.explainer_for(selection)
    return selection
