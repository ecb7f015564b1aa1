"""MLflow's scoring protocol, which Databricks, SageMaker and Azure ML speak with names of their own.

The answers are what the estimator itself would return: labels or numbers, or rows of probabilities where `params` ask
for `predict_proba`.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import msgspec
from fastapi import APIRouter, Response

from registry.errors import InvalidSelection
from registry.model import LoadedModel
from registry.outputs import Layout
from registry.registry import Registry
from registry.rows.features import Rows
from serving.errors import InvalidRequest, InvalidSetting, NoDefaultModel, UnsupportedBody
from serving.http.body import HeaderMap, body_type, turns_of_client
from serving.http.keys import NEEDED, needed_scopes
from serving.http.negotiation import preferred
from serving.http.protocols.route import Protocol, ProtocolAnswer, Question, Received
from serving.http.protocols.tables import TableReader, decode_outline
from serving.jobs.csv_reader import Header
from serving.predict.json_body import decode
from serving.predict.pieces import PIECE_BYTES, Turns
from serving.predict.request_body import MAX_PARAMETERS_BYTES, Reader
from serving.service import Service

Method = Literal["predict", "predict_proba", "decision_function"]
"""A method of the estimator."""

HEADER = re.compile(rb";\s*header\s*=\s*\"?(present|absent)\b", re.IGNORECASE)

ANSWERS_AT_ONCE = 16
"""Answers that are written before others have their turn: of a thousand classes, a millisecond or two."""

NOTHING = msgspec.Raw(b"null")
PARAMETERS = 'params must be an object such as {"method": "predict_proba"}'
ONLY_PREDICT = "a CSV has no params: the answer is what predict returns"

_Table = msgspec.Raw | msgspec.UnsetType


class ScoringBody(msgspec.Struct, forbid_unknown_fields=True):
    """A body of MLflow, or of Databricks, which adds an id. `parameters` are Vertex AI's word for `params`."""

    dataframe_split: _Table = msgspec.UNSET
    dataframe_records: _Table = msgspec.UNSET
    instances: _Table = msgspec.UNSET
    inputs: _Table = msgspec.UNSET
    params: msgspec.Raw = NOTHING
    parameters: msgspec.Raw = NOTHING
    client_request_id: msgspec.Raw = NOTHING


class AzureBody(ScoringBody):
    """A body of Azure ML: of a model of MLflow (`input_data`), or of one that was found by its AutoML."""

    data: _Table = msgspec.UNSET
    input_data: _Table = msgspec.UNSET
    table: _Table = msgspec.field(default=msgspec.UNSET, name="Inputs")
    global_parameters: msgspec.Raw = msgspec.field(default=NOTHING, name="GlobalParameters")
    method: str | None = None


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wanted of the rows."""

    method: Method = "predict"


_params = msgspec.json.Decoder(Params | None)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(eq=False, slots=True, kw_only=True)
class Scored(Question):
    """Rows, and how their answers are to be written."""

    method: Method = "predict"
    wants_csv: bool = False
    twin: str = ""
    """A further member of the answer with the predictions."""


class MLflow(Protocol):
    """Predictions of the model in the path, or else of the default one."""

    path = re.compile(r"/invocations|/(?:endpoints|serving-endpoints)/(?P<model>[^/]*)/invocations")
    kind: type[ScoringBody] = ScoringBody
    tables: Sequence[str] = ("dataframe_split", "dataframe_records", "instances", "inputs")
    """The members of a body of which it has one."""

    def __init__(
        self, registry: Registry, readers: Mapping[LoadedModel, Reader], max_rows: int, default: str = ""
    ) -> None:
        """`default` is the name of the model for requests that name none; empty for the only one."""
        self._default = default
        self._readers = {model: TableReader(model, readers[model], max_rows) for model in registry}
        self._decoder = msgspec.json.Decoder(self.kind)
        known = ", ".join(self.tables[:-1]) + f" or {self.tables[-1]}"
        self._usage = f"send an object with one of {known}, and `params` beside it"

    def find(self, registry: Registry, names: Mapping[str, str | None]) -> LoadedModel:
        """The model in the path, or the default one. Raises ModelNotFound, NotLoaded, NoDefaultModel."""
        named = names.get("model")
        return registry.get(default_name(registry, self._default) if named is None else named)

    async def read(self, model: LoadedModel, request: Received) -> Scored:
        """Read JSON or a CSV. Raises what `Protocol.read` raises."""
        if len(request.body) <= PIECE_BYTES:
            return await self._read(model, request, Turns())
        with turns_of_client(request.receive) as turns:
            return await self._read(model, request, turns)

    async def _read(self, model: LoadedModel, request: Received, turns: Turns) -> Scored:
        kind = body_type(request.headers)
        wants_csv = preferred(request.headers.get(b"accept"), (b"application/json", b"text/csv")) == b"text/csv"
        if kind == b"text/csv":
            rows = await self._readers[model].read_csv(request.body, _header(request.headers), turns)
            return Scored(rows, wants_csv=wants_csv)
        if kind != b"application/json":
            raise UnsupportedBody("send application/json or text/csv in UTF-8")
        sent = await decode_outline(self._decoder, request.body, self._usage, turns)
        method = _method(sent)
        _check_method(model.layout, method)
        name = self._table_of(sent)
        rows = await self._read_table(self._readers[model], sent, name, turns)
        return Scored(rows, method=method, wants_csv=wants_csv, twin="Results" if name == "Inputs" else "")

    def _table_of(self, sent: ScoringBody) -> str:
        """The member that holds the rows. Raises InvalidRequest unless there is exactly one."""
        members = {field.encode_name: getattr(sent, field.name) for field in msgspec.structs.fields(self.kind)}
        given = [name for name in self.tables if members[name] is not msgspec.UNSET]
        if len(given) != 1:
            found = f"it has {' and '.join(given)}" if given else "it has none of them"
            raise InvalidRequest(f"{self._usage}; {found}")
        return given[0]

    async def _read_table(self, reader: TableReader, sent: Any, name: str, turns: Turns) -> Rows:
        if name == "dataframe_split":
            return await reader.read_split(sent.dataframe_split, name, turns)
        return await reader.read(getattr(sent, name), name, turns)

    async def write(self, model: LoadedModel, question: Question, turns: Turns) -> ProtocolAnswer:
        """The predictions as JSON, or as a CSV without a header where that is accepted."""
        assert isinstance(question, Scored)
        answers, found = question.answers["predict"], []
        for start in range(0, len(answers), ANSWERS_AT_ONCE):
            some = _values(model.layout, answers[start : start + ANSWERS_AT_ONCE], question.method)
            found += [_as_csv(some)] if question.wants_csv else some
            await turns.pause()
        if question.wants_csv:
            return ProtocolAnswer(b"text/csv; charset=utf-8", b"".join(found))
        array = b",".join(found)
        twin = b',"%b":[%b]' % (question.twin.encode(), array) if question.twin else b""
        return ProtocolAnswer(b"application/json", b'{"predictions":[%b]%b}' % (array, twin))


class AzureML(MLflow):
    """The same at Azure ML's path, with its names beside those of MLflow."""

    path = re.compile(r"/score")
    kind = AzureBody
    tables = (*MLflow.tables, "data", "input_data", "Inputs")

    async def _read_table(self, reader: TableReader, sent: AzureBody, name: str, turns: Turns) -> Rows:
        if name == "Inputs":
            return await reader.read(_only_input(sent.table), name, turns)
        if name == "input_data" and _is_split(sent.input_data):
            return await reader.read_split(sent.input_data, name, turns)
        return await super()._read_table(reader, sent, name, turns)


def mlflow_router(service: Service) -> APIRouter:
    """What MLflow and SageMaker ask for before they send requests."""
    router = APIRouter(tags=["mlflow"])
    registry, default = service.registry, service.default_model

    @router.get("/ping", summary="The default model is loaded, or the models are")
    async def ping() -> Response:
        with suppress(NoDefaultModel):
            registry.get(default_name(registry, default))
        return Response(b'{"status":"ok"}', media_type="application/json")

    @router.get("/version", summary="The version of the service")
    async def version() -> Response:
        return Response(importlib.metadata.version("forkserve"), media_type="text/plain")

    return router


def default_name(registry: Registry, default: str) -> str:
    """The name of the model for requests that name none. Raises NoDefaultModel."""
    names = names_of(registry)
    if not default and len(names) != 1:
        raise NoDefaultModel
    return default or names[0]


def check_default(names: Sequence[str], default: str, *, is_needed: bool) -> None:
    """Raise InvalidSetting if the default model is not among all models, or is needed and not named."""
    if default and default not in names:
        raise InvalidSetting(f"DEFAULT_MODEL must be one of the models: {', '.join(names)}")
    if is_needed and not default and len(names) > 1:
        raise InvalidSetting(f"DEFAULT_MODEL must name the model of AIP_PREDICT_ROUTE: {', '.join(names)}")


def names_of(registry: Registry) -> list[str]:
    """The names of all models; one that could not be loaded counts, so that it never decides what is meant."""
    return sorted({model.name for model in registry} | {refusal.model for refusal in registry.refusals})


def platform_paths(registry: Registry, default: str, *, health: str, predict: str) -> Mapping[tuple[bool, str], str]:
    """For the paths that a platform calls those of ours that it means, unless they are ours; by whether it reads."""
    paths: dict[tuple[bool, str], str] = {}
    if predict and needed_scopes("POST", predict) != NEEDED["predict"]:
        try:
            ours = f"/v1/models/{default_name(registry, default)}:predict"
        except NoDefaultModel:  # since a reload: this path says so
            ours = "/invocations"
        paths |= dict.fromkeys([(False, predict), (True, predict)], ours)
    if health and needed_scopes("GET", health) != frozenset():
        paths |= {(True, health): "/ping", (False, health): paths.get((False, health), "/ping")}
    return paths


def _header(headers: HeaderMap) -> Header:
    found = HEADER.search(headers.get(b"content-type", b""))
    if found is None:
        return "guess"
    return "present" if found[1].lower() == b"present" else "absent"


def _method(sent: ScoringBody) -> Method:
    """The method that a body asks for. Raises NotJSON, InvalidRequest."""
    given = [sent.params, sent.parameters]
    if isinstance(sent, AzureBody):
        # some samples have a number there
        given += [sent.global_parameters] if bytes(sent.global_parameters).startswith(b"{") else []
        given += [msgspec.Raw(msgspec.json.encode({"method": sent.method}))] if sent.method is not None else []
    asked = {_read_params(one).method for one in given if one != NOTHING}
    if len(asked) > 1:
        raise InvalidRequest("the body asks for two methods")
    return asked.pop() if asked else "predict"


def _read_params(params: msgspec.Raw) -> Params:
    sent = bytes(params)
    if len(sent) > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(f"params may have {MAX_PARAMETERS_BYTES} bytes")
    return decode(_params, sent, PARAMETERS) or Params()


def _check_method(layout: Layout, method: Method) -> None:
    """Raises InvalidSelection for a method that the model does not have."""
    known = ["predict"]
    if "probabilities" in layout.parts:
        known.append("predict_proba")
    if "margins" in layout.parts or "score" in layout.parts:
        known.append("decision_function")
    if method not in known:
        raise InvalidSelection(f"this model has no {method}, only {' and '.join(known)}")


def _is_split(table: _Table) -> TypeGuard[msgspec.Raw]:
    """Whether an object is split as pandas does it; one of columns may have a feature of that name."""
    try:
        members = _members.decode(bytes(table)) if isinstance(table, msgspec.Raw) else {}
    except msgspec.MsgspecError:
        return False
    return "data" in members and members.keys() <= {"data", "columns", "index"}


def _only_input(table: _Table) -> msgspec.Raw:
    """The rows of `Inputs`, which stand below a name of the client's own. Raises InvalidRequest."""
    usage = 'Inputs must be an object with one member, {"data": [...]}'
    members = decode(_members, bytes(table), usage) if isinstance(table, msgspec.Raw) else {}
    if len(members) != 1:
        raise InvalidRequest(usage)
    return next(iter(members.values()))


class _Answer(msgspec.Struct):
    """One answer of `:predict`, as far as it is needed."""

    label: msgspec.Raw = NOTHING
    score: msgspec.Raw = NOTHING
    probabilities: dict[str, msgspec.Raw] = {}
    margins: dict[str, msgspec.Raw] = {}


class _Named(msgspec.Struct):
    """One answer of a model with several targets."""

    prediction: dict[str, msgspec.Raw]


_answers = msgspec.json.Decoder(list[_Answer])
_named = msgspec.json.Decoder(list[_Named])


def _values(layout: Layout, answers: Sequence[bytes], method: Method) -> list[bytes]:
    """What `method` of the estimator returns for each row, as JSON: of several targets an array, in their order."""
    if layout.is_named:
        rows = _named.decode(b"[%b]" % b",".join(answers))
        each = [_values_of_target(layout, [*row.prediction.values()], method) for row in rows]
        return [b"[%b]" % b",".join(values) for values in each]
    return _values_of_target(layout, answers, method)


def _values_of_target(layout: Layout, answers: Sequence[bytes | msgspec.Raw], method: Method) -> list[bytes]:
    if "value" in layout.parts:
        return [bytes(answer) for answer in answers]
    pick = _picker(layout, method)
    return [pick(answer) for answer in _answers.decode(b"[%b]" % b",".join(answers))]


def _picker(layout: Layout, method: Method) -> Callable[[_Answer], bytes]:
    if method == "predict_proba":
        return lambda answer: _array(answer.probabilities)
    if method == "predict":
        return (
            (lambda answer: bytes(answer.score)) if layout.parts == ("score",) else (lambda answer: bytes(answer.label))
        )
    if "score" in layout.parts:
        return lambda answer: bytes(answer.score)
    # of two classes the estimator says only the margin of the second
    return lambda answer: bytes([*answer.margins.values()][1]) if len(answer.margins) == 2 else _array(answer.margins)


def _array(values: Mapping[str, msgspec.Raw]) -> bytes:
    return b"[%b]" % b",".join(values.values())


def _as_csv(values: Sequence[bytes]) -> bytes:
    """A line for each row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for value in msgspec.json.decode(b"[%b]" % b",".join(values)):
        writer.writerow(_flat(value))
    return text.getvalue().encode()


def _flat(value: Any) -> list[Any]:
    return [inner for one in value for inner in _flat(one)] if isinstance(value, list) else [value]
