"""Bodies of other protocols' tables that cannot be right, or cost more than they weigh: refused, never a failure."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from harness.apps import client_of
from registry.errors import InvalidRows
from registry.model import LoadedModel
from registry.registry import Registry
from registry.store.loader import load_version
from serving.app import Application, build, build_alerts
from serving.errors import InvalidRequest, NotJSON, TooManyInstances
from serving.http.protocols.mlflow import MLflow, Scored
from serving.http.protocols.tables import TableReader, null_for_nan
from serving.http.protocols.tensors import InputTensor, OutputTensor, read_json
from serving.predict.pieces import PIECE_BYTES, Turns
from serving.predict.request_body import Reader
from serving.settings import Settings
from tests.attacks.payloads import COSTLY_BYTES, GOOD_ROW, ROW, CountedTurns, fill
from tests.cases import cases

PATHS = ("/invocations", "/endpoints/wine/invocations", "/serving-endpoints/wine/invocations", "/score")
MARKER = "text-of-the-client"


@pytest.fixture(scope="module")
def app(few_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    data = tmp_path_factory.mktemp("data")
    settings = Settings(model_dir=few_models, data_dir=data, default_model="wine", access_log=False)
    return build(settings, build_alerts(settings))


@pytest.fixture(scope="module")
def wine(few_models: Path) -> LoadedModel:
    return load_version(few_models, few_models / "wine" / "1")


def send(app: Application, *requests: tuple[str, bytes, str]) -> list[httpx.Response]:
    """The answers to POST requests: path, body, content type."""

    async def all_of_them() -> list[httpx.Response]:
        async with client_of(app) as client:
            return [
                await client.post(path, content=body, headers={"content-type": kind}) for path, body, kind in requests
            ]

    return asyncio.run(all_of_them())


def check(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) <= 8 * 1024
    assert MARKER not in answer.text
    assert answer.json()["detail"]


def split(**members: Any) -> dict[str, Any]:
    return {"dataframe_split": members}


def mistakes(names: list[str]) -> dict[str, Any]:
    """Bodies as JSON values, by what is wrong with them."""
    row = json.loads(GOOD_ROW)
    record = dict(zip(names, row, strict=True))
    return {
        "an array": [row],
        "a text": "instances",
        "null": None,
        "nothing": {},
        "only params": {"params": {}},
        "an unknown member": {"instances": [row], MARKER * 10: 1},
        "two tables": {"instances": [row], "dataframe_records": [record]},
        "no rows": {"instances": []},
        "no records": {"dataframe_records": []},
        "no columns": {"inputs": {}},
        "a number for a table": {"inputs": 5},
        "null for a table": {"dataframe_records": None},
        "true for a row": {"inputs": [True]},
        "rows and records": {"inputs": [row, record]},
        "a short row": {"inputs": [row[1:]]},
        "a long row": {"inputs": [[*row, 1]]},
        "a text for a number": {"inputs": [[MARKER, *row[1:]]]},
        "a row in a row": {"inputs": [[[row], *row[1:]]]},
        "a number that no float is": {"inputs": [[10**400, *row[1:]]]},
        "an unknown feature": {"dataframe_records": [record | {MARKER * 10: 1}]},
        "a missing feature": {"dataframe_records": [dict(list(record.items())[1:])]},
        "a split that is an array": {"dataframe_split": [row]},
        "a split without data": split(columns=names),
        "a split with other members": split(columns=names, data=[row], dtypes=[]),
        "a split without a column": split(columns=names[1:], data=[row]),
        "a split with a column twice": split(columns=[*names, names[0]], data=[[*row, 1]]),
        "a split with an unknown column": split(columns=[*names[1:], MARKER], data=[row]),
        "columns that are numbers": split(columns=list(range(13)), data=[row]),
        "columns that are an object": split(columns=record, data=[row]),
        "columns that are null": split(columns=None, data=[row]),
        "data that is an object": split(columns=names, data={"0": row}),
        "data without rows": split(columns=names, data=[]),
        "data of numbers": split(columns=names[::-1], data=row),
        "data of short rows": split(columns=names[::-1], data=[row, row[1:]]),
        "data of records": split(columns=names[::-1], data=[[row]]),
        "columns of several lengths": {"inputs": {name: [1] * (1 + (name == names[3])) for name in names}},
        "columns of no length": {"inputs": {name: [] for name in names}},
        "a column that is a number": {"inputs": record},
        "a column that is missing": {"inputs": {name: [1] for name in names[1:]}},
        "a column that is unknown": {"inputs": {name: [1] for name in [*names, MARKER * 10]}},
        "tensors of two columns": {"inputs": {name: [[1, 2]] for name in names}},
        "tensors in tensors": {"inputs": {name: [[[1]]] for name in names}},
        "params that are an array": {"inputs": [row], "params": []},
        "params that are unknown": {"inputs": [row], "params": {"temperature": 1}},
        "a method that there is not": {"inputs": [row], "params": {"method": "__class__"}},
        "a method that the model lacks": {"inputs": [row], "params": {"method": "decision_function"}},
        "two methods": {"inputs": [row], "params": {"method": "predict"}, "parameters": {"method": "predict_proba"}},
        "long params": {"inputs": [row], "params": {"method": "x" * 100_000}},
    }


AZURE: dict[str, Any] = {
    "no input": {"Inputs": {}},
    "two inputs": {"Inputs": {"a": [[1]], "b": [[1]]}},
    "inputs that are an array": {"Inputs": [[1]]},
    "an input that is a text": {"Inputs": {"data": "x"}},
    "a split that lacks columns": {"input_data": {"columns": ["x"], "data": [[1]]}},
    "parameters that are unknown": {"data": [[1]], "GlobalParameters": {"x": 1}},
    "a method that is a number": {"data": [[1]], "method": 5},
}


def test_every_mistake_is_refused_in_every_path_and_says_what_to_send(app: Application, wine: LoadedModel) -> None:
    names = list(wine.schema.names)
    with cases() as case:
        for name, body in mistakes(names).items():
            for path, answer in zip(PATHS, send(app, *[(path, encoded(body), JSON) for path in PATHS]), strict=True):
                with case((name, path)):
                    check(answer, 400, 422)
        for name, body in AZURE.items():
            with case(name):
                check(send(app, ("/score", encoded(body), JSON))[0], 400, 422)


JSON = "application/json"


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


def test_the_refusal_of_an_unknown_member_names_those_that_are_known(app: Application) -> None:
    ours, azure = send(app, ("/invocations", b'{"rows":[]}', JSON), ("/score", b'{"rows":[]}', JSON))
    known = ["dataframe_split", "dataframe_records", "instances", "inputs"]
    assert all(name in ours.json()["detail"] for name in known)
    assert all(name in azure.json()["detail"] for name in [*known, "data", "input_data", "Inputs"])


RAW: dict[str, tuple[bytes, str, tuple[int, ...]]] = {
    "no JSON": (b"{", JSON, (400,)),
    "nothing": (b"", JSON, (400,)),
    "not UTF-8": (b'{"inputs":[["\xff"]]}', JSON, (400, 422)),
    "nested": (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON, (400, 422)),
    "nested columns": (b'{"inputs":' + b'{"alcohol":' * 5000 + b"1" + b"}" * 5001, JSON, (400, 422)),
    "infinite": (b'{"inputs":[[Infinity]]}', JSON, (400,)),
    "NaN and no JSON": (b'{"inputs":[[NaN]', JSON, (400,)),
    "a member twice": (b'{"inputs":[[1]],"inputs":[[2]]}', JSON, (400, 422)),
    "another type": (GOOD_ROW, "text/plain", (415,)),
    "another character set": (b'{"inputs":[]}', "application/json; charset=utf-16", (415,)),
    "a form": (b"inputs=1", "application/x-www-form-urlencoded", (415,)),
    "no CSV": (b'1,"2', "text/csv", (422,)),
    "an empty CSV": (b"", "text/csv", (422,)),
    "an empty line": (b"\n\n", "text/csv", (422,)),
    "a CSV of two columns": (b"1,2\n", "text/csv", (422,)),
    "a CSV with a NUL": (b"\0,1\n", "text/csv", (422,)),
    "a CSV that is not UTF-8": (b"\xff\xfe1,2", "text/csv", (422,)),
    "a header alone": (b"alcohol", "text/csv", (422,)),
    "half a header": (b"alcohol,x\n1,2\n", "text/csv", (422,)),
    "a header that there is not": (GOOD_ROW[1:-1], "text/csv; header=present", (422,)),
    "a header where there is none": (b"alcohol" + b",x" * 12, "text/csv; header=absent", (422,)),
    "numbers of another script": (GOOD_ROW[1:-1].replace(ROW[0], "١٢".encode(), 1), "text/csv", (422,)),
    "an infinite number": (GOOD_ROW[1:-1].replace(ROW[0], b"inf", 1), "text/csv", (422,)),
    "a missing number": (GOOD_ROW[1:-1].replace(ROW[0], b"nan", 1), "text/csv", (422,)),
    "too many rows": ((GOOD_ROW[1:-1] + b"\n") * 1001, "text/csv", (413,)),
    "too many records": (b'{"inputs":[%b]}' % b",".join([GOOD_ROW] * 1001), JSON, (413,)),
}


def test_bodies_that_are_no_table_are_refused(app: Application) -> None:
    with cases() as case:
        for name, (body, kind, statuses) in RAW.items():
            for path, answer in zip(PATHS, send(app, *[(path, body, kind) for path in PATHS]), strict=True):
                with case((name, path)):
                    check(answer, *statuses)


def test_good_bodies_are_answered_afterwards(app: Application) -> None:
    answers = send(app, *[(path, b'{"inputs":[%b]}' % GOOD_ROW, JSON) for path in PATHS])
    assert [answer.status_code for answer in answers] == [200] * len(PATHS)


def costly(names: list[str]) -> dict[str, bytes]:
    """Tables of COSTLY_BYTES, of which a small part is enough to refuse them."""
    first = json.dumps(names[0]).encode()
    others = b",".join(b"%b:[1]" % json.dumps(name).encode() for name in names[1:])
    return {
        "a column of numbers": fill(b"1", b"{%b,%b:[" % (others, first), b"]}"),
        "a column of slow numbers": fill(b"1e308", b"{%b,%b:[" % (others, first), b"]}"),
        "a column of arrays": fill(b"[]", b"{%b,%b:[" % (others, first), b"]}"),
        "a column of one text": b'{%b,%b:["%b"]}' % (others, first, b"x" * COSTLY_BYTES),
        "unknown columns": b"{" + b",".join(b'"%x":[1]' % number for number in range(200_000)) + b"}",
        "rows of slow numbers": fill(b"[" + b",".join([b"1e308"] * 13) + b"]", b"[", b"]"),
        "good rows": fill(GOOD_ROW, b"[", b"]"),
        "one long row": fill(b"1", b"[[", b"]]"),
    }


@pytest.mark.anyio
async def test_a_large_table_is_refused_after_a_few_pieces(wine: LoadedModel) -> None:
    names = list(wine.schema.names)
    reader = TableReader(wine, Reader(wine, 1000), 1000)
    most = 1000 * len(GOOD_ROW) / PIECE_BYTES + 20
    refusals = (InvalidRequest, InvalidRows, NotJSON, TooManyInstances)
    with cases() as case:
        for name, table in costly(names).items():
            turns = CountedTurns()
            with case(name), pytest.raises(refusals):
                await reader.read(msgspec.Raw(table), "inputs", turns)
            with case((name, "pauses")):
                assert turns.pauses <= most
        for name, data in costly(names).items():
            if data.startswith(b"["):
                turns = CountedTurns()
                columns = json.dumps(names[::-1]).encode()
                with case((name, "split")), pytest.raises(refusals):
                    await reader.read_split(msgspec.Raw(b'{"columns":%b,"data":%b}' % (columns, data)), "x", turns)
                with case((name, "split, pauses")):
                    assert turns.pauses <= most
        turns = CountedTurns()
        many = msgspec.Raw(fill(b'"x"', b'{"data":[],"columns":[', b"]}"))
        with case("names"), pytest.raises(refusals):
            await reader.read_split(many, "x", turns)
        with case("lines"), pytest.raises(refusals):
            await reader.read_csv(b"\n" * COSTLY_BYTES, "guess", turns)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [b'"' + b'\\"' * 500_000, b"\\" * 1_000_000, b'"NaN' * 250_000, b'"' * 1_000_000, b"NaN" * 300_000 + b'"'],
    ids=["escapes", "backslashes", "open", "quotes", "NaN"],
)
async def test_nan_is_looked_for_once_through_the_body(body: bytes) -> None:
    # a quadratic search would take minutes
    assert (await null_for_nan(body, Turns())).replace(b"null", b"NaN") == body


@pytest.mark.anyio
async def test_nan_in_texts_stays() -> None:
    body = rb'{"a":[NaN, "NaN", "\"NaN, ", "\\", NaN],"NaN":NaN}'
    expected = rb'{"a":[null, "NaN", "\"NaN, ", "\\", null],"NaN":null}'
    assert await null_for_nan(body, Turns()) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("element", [b"NaN", b'"a"'])
async def test_others_have_their_turn_while_nan_is_looked_for(element: bytes) -> None:
    turns = CountedTurns()
    await null_for_nan(b"[" + b",".join([element] * 250_000) + b"]", turns)
    assert turns.pauses > 200


@pytest.mark.anyio
@pytest.mark.parametrize("data", [b"9007199254740993", b"null", b"1e308"])
async def test_others_have_their_turn_while_numbers_of_a_tensor_are_read(data: bytes) -> None:
    turns, count = CountedTurns(), 50_000
    raw = msgspec.Raw(b"[" + b",".join([data] * count) + b"]")
    cells = await read_json(InputTensor("x", [count], "FP64" if data == b"1e308" else "INT64", raw), turns)
    assert len(cells) == count
    assert turns.pauses > len(memoryview(raw)) / (2 * PIECE_BYTES)


@pytest.mark.anyio
@pytest.mark.parametrize("cells", [[0.5] * 500_000, np.full(500_000, 0.5), ["a"] * 500_000])
async def test_others_have_their_turn_while_a_tensor_is_written(cells: Any) -> None:
    turns = CountedTurns()
    written = await OutputTensor("x", "FP64", 1, cells).as_json(turns)
    assert turns.pauses > 100
    assert msgspec.json.decode(b"[%b]" % written) == list(cells)


@pytest.mark.anyio
@pytest.mark.parametrize("wants_csv", [False, True])
async def test_others_have_their_turn_while_answers_are_written(wine: LoadedModel, *, wants_csv: bool) -> None:
    shares = dict.fromkeys(wine.labels.texts, 0.25)
    answer = msgspec.json.encode({"label": wine.labels.texts[0], "probabilities": shares})
    scored = Scored(np.zeros((1000, 13)), method="predict_proba", wants_csv=wants_csv)
    scored.answers["predict"] = [answer] * 1000
    turns = CountedTurns()
    written = await MLflow(Registry([wine]), {wine: Reader(wine, 1000)}, 1000).write(wine, scored, turns)
    assert turns.pauses >= 50
    rows = written.body.decode().splitlines() if wants_csv else msgspec.json.decode(written.body)["predictions"]
    assert len(rows) == 1000
