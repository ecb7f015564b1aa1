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
from registry.rows.features import Rows
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
from serving.predict.request_body import MAX_PARAMETERS_BYTES, Reader

USAGE = 'send an object: {"inputs": [{"name": ..., "shape": [rows, columns], "datatype": "FP64", "data": [...]}]}'

HEADER_LENGTH = b"inference-header-content-length"
BINARY_TYPE = b"application/octet-stream"
JSON_TYPE = b"application/json"

KINDS: Mapping[str, tuple[type, str]] = {
    "binary_data": (bool, "true or false"),
    "binary_data_output": (bool, "true or false"),
    "classification": (int, "a whole number"),
    "content_type": (str, "a string"),
}
"""The parameters that change something, wherever they stand, with their types; null is none."""

CONTENT_TYPES = ("pd", "np", "str", "datetime")
"""The parameters `content_type` that MLServer's clients write; what they say is in names and datatypes, too."""

EXCESS = "the body has {} bytes more than its tensors"

REMEMBERED = 256
MAX_REMEMBERED_BYTES = 1024
"""Bytes of JSON before binary data, or beside inputs, that are read once and then remembered, and how many of them."""

MAX_BRACES = 2048
"""Inputs with so few braces are so few that they are decoded at once; to find where each ends takes much longer."""

EXPLAIN = "explain"
BASE_VALUE = "explain_base_value"
EXPLAINED_OUTPUT = "explain_output"
EXPLANATION = (EXPLAIN, BASE_VALUE, EXPLAINED_OUTPUT)
"""The tensors of an explanation: a column for each name that explanations show, the base value, and the output."""

Parameters: TypeAlias = dict[str, Any] | None

NULL = msgspec.Raw(b"null")


class RequestedOutput(msgspec.Struct, gc=False):
    """A tensor that a request asks for."""

    name: str
    parameters: Parameters = None


class InferenceRequest(msgspec.Struct):
    """The JSON of a request; what stands beside its inputs, the same each time, is decoded once (`Options`)."""

    inputs: list[InputTensor]
    outputs: msgspec.Raw = NULL
    id: str | None = None
    parameters: msgspec.Raw = NULL


class RequestOutline(msgspec.Struct):
    """The JSON of a large request, whose inputs are decoded one after the other."""

    inputs: msgspec.Raw
    outputs: msgspec.Raw = NULL
    id: str | None = None
    parameters: msgspec.Raw = NULL


class Options(msgspec.Struct):
    """The tensors and the parameters that a request asks for."""

    outputs: list[RequestedOutput] | None
    parameters: Parameters


_request = msgspec.json.Decoder(InferenceRequest)
_outline = msgspec.json.Decoder(RequestOutline)
_options = msgspec.json.Decoder(Options)
_inputs: msgspec.json.Decoder[list[InputTensor]] = msgspec.json.Decoder(list[InputTensor])
_any = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


@dataclass(eq=False, slots=True)
class InferenceQuestion(Question):
    """A question whose answer repeats what its body says."""

    wanted: WantedAnswer | None = None
    id: str | None = None


@dataclass(eq=False, slots=True)
class WantedAnswer:
    """The answer that a request wants."""

    names: Sequence[str]
    """Its tensors, in order."""
    binary: frozenset[str] = frozenset()
    """Those of them that are answered as bytes."""
    selections: Mapping[Verb, Selection] = field(default_factory=lambda: PREDICTIONS)
    parameters: dict[str, Any] = field(default_factory=dict)
    """Those that it has, in the order in which it shows them."""


@dataclass(frozen=True, eq=False)
class ModelTensors:
    """The tensors that a model takes and makes."""

    model: LoadedModel

    @cached_property
    def begin_answer(self) -> bytes:
        """The start of the JSON of an answer; names and versions need no escaping."""
        return f'{{"model_name":"{self.model.name}","model_version":"{self.model.version}"'.encode()

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


class V2(Protocol):
    """Reads tensors and answers tensors."""

    path = re.compile(r"/v2/models/(?P<model>[^/]*)(?:/versions/(?P<version>[^/]*))?/infer", re.DOTALL)

    def __init__(self, registry: Registry, readers: Mapping[LoadedModel, Reader], max_rows: int) -> None:
        """`readers` are those of `:predict`."""
        self._max_rows = max_rows
        self._tensors = {model: ModelTensors(model) for model in registry}
        self._makers = {model: RowMaker(model, readers[model]) for model in registry}
        # a client sends the same JSON before binary data, and beside inputs, each time
        self._remembered = lru_cache(REMEMBERED)(self._parsed)
        self._remembered_options = lru_cache(REMEMBERED)(_wanted)
        self._remembered_head = lru_cache(REMEMBERED)(_tensor_head)

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
        maker = self._makers[model]
        rows: Rows | None = None
        if end is not None and end <= MAX_REMEMBERED_BYTES:
            sent, wanted = self._remembered(model, content)
        else:
            sent = await _read_json(content, turns)
            rows = maker.quickly(sent.inputs, self._max_rows)
            wanted = self._check(model, sent, are_read=rows is not None)
        if rows is None:
            rows = await self._rows(maker, sent.inputs, memoryview(body)[len(content) :], turns)
        elif end not in (None, len(body)):
            raise InvalidRequest(EXCESS.format(len(body) - len(content)))
        return InferenceQuestion(
            rows, wanted.selections, as_outputs=True, look_up=end is None, wanted=wanted, id=sent.id
        )

    async def _rows(self, maker: RowMaker, inputs: Sequence[InputTensor], binary: memoryview, turns: Turns) -> Rows:
        """The rows that tensors have, in JSON or as bytes. Raises NotJSON, InvalidRequest, InvalidRows."""
        found, place = [], 0
        for head in inputs:
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
            raise InvalidRequest(EXCESS.format(len(binary) - place))
        return await maker.rows(found, turns)

    def _parsed(self, model: LoadedModel, content: bytes) -> tuple[InferenceRequest, WantedAnswer]:
        sent = decode(_request, content, USAGE)
        return sent, self._check(model, sent)

    def _check(self, model: LoadedModel, sent: InferenceRequest, *, are_read: bool = False) -> WantedAnswer:
        """What a request wants; unless its inputs `are_read`, they are checked before one looks at their elements.

        Raises NotJSON, InvalidRequest, TooManyInstances, InvalidSelection, NotExplained.
        """
        if not are_read:
            features = len(model.schema)
            if not 1 <= len(sent.inputs) <= features:
                raise InvalidRequest(
                    f"there must be at least one input, and at most one for each of {features} features"
                )
            for head in sent.inputs:
                head.check(self._max_rows, features)
                check_parameters(head.parameters)
            self._makers[model].is_matrix(sent.inputs)
        outputs, parameters = bytes(sent.outputs), bytes(sent.parameters)
        is_small = len(outputs) + len(parameters) <= MAX_REMEMBERED_BYTES
        return (self._remembered_options if is_small else _wanted)(self._tensors[model], outputs, parameters)

    async def write(self, model: LoadedModel, question: Question, turns: Turns) -> ProtocolAnswer:
        assert isinstance(question, InferenceQuestion)
        wanted = question.wanted
        assert wanted is not None
        tensors = self._tensors[model]
        explanations = []
        for answer in question.answers.get("explain", ()):
            explanations.append(_any.decode(answer))
            await turns.pause()
        contents, shown = [], []
        for name in wanted.names:
            made = tensors.made(name, question.outputs, explanations)
            if name in wanted.binary:
                contents.append(made.as_bytes())
                data = b'"parameters":{"binary_data_size":%d}}' % len(contents[-1])
            else:
                data = b'"data":[%b]}' % await made.as_json(turns)
            shown.append(self._remembered_head(name, made.datatype, len(question.rows), made.columns) + data)
        begin = tensors.begin_answer
        if question.id is not None:
            begin += b',"id":%b' % _encode(question.id)
        if wanted.parameters:
            begin += b',"parameters":%b' % _encode(wanted.parameters)
        head = b'%b,"outputs":[%b]}' % (begin, b",".join(shown))
        if not contents:
            return ProtocolAnswer(JSON_TYPE, head)
        return ProtocolAnswer(BINARY_TYPE, b"".join((head, *contents)), [(HEADER_LENGTH, b"%d" % len(head))])


def _tensor_head(name: str, datatype: str, rows: int, columns: int) -> bytes:
    """The JSON of a tensor up to its data or their size."""
    return _encode({"name": name, "shape": [rows, columns], "datatype": datatype})[:-1] + b","


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
    """Raise InvalidRequest for parameters of a wrong type, and those that would change what tensors are."""
    if not parameters:
        return
    for name, (kind, words) in KINDS.items():
        if parameters.get(name) is not None and type(parameters[name]) is not kind:
            raise InvalidRequest(f"the parameter {name} must be {words}")
    if parameters.get("content_type") not in (None, *CONTENT_TYPES):
        raise InvalidRequest(f"content_type must be one of {', '.join(CONTENT_TYPES)}")
    if "shared_memory_region" in parameters:
        raise InvalidRequest("tensors in shared memory are not supported; send their data")


async def _read_json(content: bytes, turns: Turns) -> InferenceRequest:
    """Read JSON of any size, of a large one an input at a time; their elements come later."""
    if len(content) <= PIECE_BYTES:
        return decode(_request, content, USAGE)
    outline = decode(_outline, content, USAGE)
    beside = len(memoryview(outline.outputs)) + len(memoryview(outline.parameters)) + len((outline.id or "").encode())
    if beside > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(f"outputs, id and parameters may have {MAX_PARAMETERS_BYTES} bytes together")
    await turns.pause()
    inputs = bytes(outline.inputs)
    if not inputs.startswith(b"["):
        raise InvalidRequest(USAGE)
    sent = InferenceRequest([], outline.outputs, outline.id, outline.parameters)
    if inputs.count(b"{") <= MAX_BRACES:
        sent.inputs = decode(_inputs, inputs, USAGE)
        return sent
    for piece in split(inputs, len(inputs)):
        await turns.pause()
        some: list[InputTensor] = decode(_inputs, piece.content, USAGE)
        sent.inputs += some
    return sent


def _wanted(tensors: ModelTensors, outputs: bytes, parameters: bytes) -> WantedAnswer:
    """What a request asks for. Raises NotJSON, InvalidRequest, InvalidSelection, NotExplained."""
    options = decode(_options, b'{"outputs":%b,"parameters":%b}' % (outputs, parameters), USAGE)
    check_parameters(options.parameters)
    repeated = _repeated(options.parameters) | marks(tensors.model)
    is_binary = bool((options.parameters or {}).get("binary_data_output"))
    if not options.outputs:
        binary = frozenset(tensors.defaults if is_binary else ())
        return WantedAnswer(tensors.defaults, binary, parameters=repeated)
    names: dict[str, bool] = {}
    selections: dict[Verb, Selection] = {}
    for one in options.outputs:
        if one.name not in tensors.columns:
            raise InvalidRequest(f"outputs must be among {', '.join(tensors.columns)}")
        own = one.parameters or {}
        check_parameters(own)
        if own.get("classification"):
            raise InvalidRequest("classification is not supported: ask for label, or predict_proba")
        if one.name in EXPLANATION:
            selections["explain"] = _selection(own, tensors.model)
        else:
            selections["predict"] = EVERYTHING
        for name in EXPLANATION if one.name == EXPLAIN else (one.name,):
            names[name] = bool(own.get("binary_data", is_binary))
    return WantedAnswer(list(names), frozenset(name for name, wanted in names.items() if wanted), selections, repeated)


def _selection(parameters: Mapping[str, Any], model: LoadedModel) -> Selection:
    """The explanation that an output's parameters ask for. Raises InvalidSelection, NotExplained."""
    if "space" not in parameters:
        return EVERYTHING
    selection = Selection(space=parameters["space"])
    if not isinstance(selection.space, str):
        raise InvalidRequest("the parameter space must be a string")
    model.explainer_for(selection)
    return selection
