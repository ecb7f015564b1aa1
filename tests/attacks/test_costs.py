"""Bodies that cost more than they weigh: each is cut into small pieces, and refused before it costs much."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.types import Message, Receive

from harness.apps import client_of
from harness.service import Service
from harness.wire import Connection, ask, check_refusal, request
from registry.errors import InvalidRows
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.registry import Registry
from registry.store.loader import load_version
from serving.app import build, build_alerts
from serving.entities.outcomes import OutcomesBody
from serving.errors import BodiesFull, InvalidRequest, TooManyBytes, TooManyInstances
from serving.http.body import Bodies, HeldBody
from serving.http.routes.entities import RecordsBody
from serving.jobs.csv_reader import CsvReader
from serving.jobs.requests import JobReader
from serving.predict.json_body import LargeBodyDecoder
from serving.predict.operation import VERBS, Operation, answer_bytes
from serving.predict.pieces import PIECE_BYTES, ElementTooLarge, Turns, split
from serving.predict.request_body import Reader
from serving.settings import Settings
from serving.shared.book import Book
from tests.attacks.payloads import COSTLY_BYTES, GOOD_ROW, PATH, ROW, CountedTurns, body, fill


@pytest.fixture(scope="module")
def wine(models: Path) -> LoadedModel:
    return load_version(models, models / "wine" / "1")


BODIES = {
    "numbers": fill(b"0"),
    "arrays": fill(b"[]"),
    "objects": fill(b"{}"),
    "nested": fill(b"[" * 13 + b"]" * 13),
    "texts": fill(b'"\\n"'),
    "slow numbers": fill(b"1e308"),
    "rows of slow numbers": fill(b"[" + b",".join([b"1e308"] * 13) + b"]"),
    "one row of arrays": fill(b"[]", b'{"instances":[[', b"]]}"),
    "one row of slow numbers": fill(b"1e308", b'{"instances":[[', b"]]}"),
    "one row of keys": b'{"instances":[{' + b",".join(b'"%x":0' % number for number in range(300_000)) + b"}]}",
    "good rows": fill(GOOD_ROW),
    "classes": fill(b"1e308", b'{"instances":[%b],"parameters":{"classes":[' % GOOD_ROW, b"]}}"),
    "unknown member": fill(b"1e308", b'{"inputs":[', b"]}"),
    "member twice": fill(b'"instances":[]', b"{", b"}"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", BODIES)
async def test_body_is_refused_after_a_few_pieces(wine: LoadedModel, name: str) -> None:
    turns = CountedTurns()
    with pytest.raises((InvalidRows, InvalidRequest, TooManyInstances)):
        await Reader(wine, 1000).read_large(BODIES[name], turns)
    assert turns.pauses <= 1000 * len(GOOD_ROW) / PIECE_BYTES + 2


@pytest.mark.parametrize("name", ["rows of slow numbers", "good rows", "nested"])
def test_pieces_are_small(name: str) -> None:
    array = BODIES[name].removeprefix(b'{"instances":').removesuffix(b"}")
    pieces = [*split(array, COSTLY_BYTES)]
    assert max(len(piece.content) for piece in pieces) < PIECE_BYTES + 200
    assert b",".join(piece.content[1:-1] for piece in pieces) == array[1:-1]
    assert sum(piece.count for piece in pieces) == len(json.loads(array))


@pytest.mark.parametrize("array", [b'[1, "],[", {"a": "\\\\", "}": [[], {}]} , null]', b"[ ]", b'[["\\"]"]]'])
def test_pieces_end_where_elements_end(monkeypatch: pytest.MonkeyPatch, array: bytes) -> None:
    monkeypatch.setattr("serving.predict.pieces.PIECE_BYTES", 1)
    pieces = [*split(array, COSTLY_BYTES)]
    assert [json.loads(piece.content) for piece in pieces] == [[element] for element in json.loads(array)]
    assert [piece.first for piece in pieces] == [*range(len(pieces))]


def test_element_that_is_larger_than_any_that_fits_is_not_read() -> None:
    with pytest.raises(ElementTooLarge) as error:
        [*split(b"[" + GOOD_ROW + b',["' + b"x" * 5000 + b'"]]', 4000)]
    assert error.value.index == 1


@pytest.mark.anyio
async def test_large_body_gives_the_rows_and_faults_of_a_small_one(wine: LoadedModel) -> None:
    reader = Reader(wine, 1000)
    slow = GOOD_ROW.replace(ROW[0], b"13.2e000")
    rows, _ = await reader.read_large(b'{"instances":[' + b",\n".join([GOOD_ROW, slow] * 500) + b"]}", Turns())
    assert rows.shape == (1000, 13)
    assert (rows == reader.read(b'{"instances":[' + GOOD_ROW + b"]}")[0]).all()
    bad = [GOOD_ROW] * 400 + [b"[1e308]", b"{}", GOOD_ROW]
    with pytest.raises(InvalidRows) as error:
        await reader.read_large(b'{"instances":[' + b",".join(bad) + b"]}" + b" " * COSTLY_BYTES, Turns())
    assert [(fault.instance, fault.reason) for fault in error.value.faults] == [
        (400, "must have 13 values, has 1"),
        (401, "must be an array, like the first"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("classes", [["class_0", "class_0"], ["class_0"] * 300_000, ["class_0", "class_1"] * 2])
async def test_class_that_is_named_twice_is_refused_in_jobs(wine: LoadedModel, classes: list[str]) -> None:
    reader = JobReader(Registry([wine]), max_rows=10, chunk_rows=10)
    asked = {"operation": "explain", "model": "wine", "parameters": {"classes": classes}}
    with pytest.raises(Exception, match=r"each named once|parameters may have"):
        await reader.read_json(json.dumps(asked | {"instances": [json.loads(GOOD_ROW)]}).encode(), "")


@pytest.mark.parametrize("classes", [["class_0", "class_0"], ["class_0"] * 100_000])
def test_class_that_is_named_twice_is_refused(service: Service, classes: list[str]) -> None:
    content = json.dumps({"instances": [json.loads(GOOD_ROW)], "parameters": {"classes": classes}}).encode()
    check_refusal(ask(service, request(PATH.replace("predict", "explain"), content)), 422)


@pytest.mark.parametrize(
    ("document", "lines"),
    [(b"\n" * COSTLY_BYTES, 2), (b'a\n"\n' + b'",x"y,"\n' * 8000, 20), (b'a\r\n\r\n\r\n"', 3)],
    ids=["line ends", "open quotes", "two empty lines"],
)
def test_csv_that_costs_much_is_refused_at_once(document: bytes, lines: int) -> None:
    reader = CsvReader()
    with pytest.raises(InvalidRequest):
        [*reader.rows([document])]
    assert reader._lines_read <= lines


def held(bodies: Bodies, client: bytes, *sizes: int) -> HeldBody:
    """A body that arrives in parts of these sizes, and is not complete."""
    body = HeldBody(bodies, client, parts(*sizes))
    for _ in sizes:
        asyncio.run(body.receive())
    return body


def parts(*sizes: int) -> Receive:
    left = iter(sizes)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * next(left), "more_body": True}

    return receive


def test_unfinished_bodies_of_one_client_leave_room_for_others() -> None:
    counted = Book(2).holdings()
    here, elsewhere = Bodies(counted, COSTLY_BYTES), Bodies(counted, COSTLY_BYTES)
    bodies = here
    kept = [held(here if number % 2 else elsewhere, b"a", COSTLY_BYTES) for number in range(8)]
    for worker in (here, elsewhere):
        with pytest.raises(TooManyBytes):
            held(worker, b"a", 1)
    kept += [held(here, b"b", COSTLY_BYTES) for _ in range(8)]
    assert counted.total() == 64 * 1024 * 1024
    large = held(bodies, b"c", COSTLY_BYTES, COSTLY_BYTES)
    with pytest.raises(BodiesFull):
        held(bodies, b"d", 1)
    for one in [*kept, large]:
        one.release()
    assert counted.total() == 0
    held(bodies, b"d", 16 * COSTLY_BYTES)


def test_unfinished_bodies_of_one_client_are_refused(target: Service) -> None:
    """Each is complete but for a byte; those that are not refused are complete in the end."""
    content = body() + b" " * (COSTLY_BYTES - len(body()))
    connections = [Connection(target) for _ in range(16)]
    try:
        for connection in connections:
            connection.send(request(PATH, content)[:-1])
        refused: set[Connection] = set()
        while len(refused) < len(connections) - 8:  # both workers together hold eight of them
            refused |= {connection for connection in connections if connection.says_something(0.1)}
        for connection in refused:
            answer = connection.answer()
            assert answer is not None
            check_refusal(answer, 429)
            assert answer.headers["connection"] == "close"
        for connection in set(connections) - refused:
            connection.send(b" ")
            answer = connection.answer()
            assert answer is not None
            assert answer.status in (200, 429)
    finally:
        for connection in connections:
            connection.close()


RECORD = b'{"values":{"a":1e308}}'
LARGE_BODIES: dict[str, tuple[type[Any], bytes]] = {
    "records": (RecordsBody, fill(RECORD, b'{"records":[')),
    "numbers for records": (RecordsBody, fill(b"1e308", b'{"records":[')),
    "columns": (RecordsBody, fill(b"1e308", b'{"values":{"a":[', b"]}}")),
    "one large record": (RecordsBody, fill(b"1e308", b'{"records":[{"values":{"a":[', b"]}}]}")),
    "instances": (OutcomesBody, fill(b"1e308", b'{"outcomes":[],"instances":[')),
    "outcomes": (OutcomesBody, fill(b"[]", b'{"instances":[],"outcomes":[')),
    "unknown member": (OutcomesBody, fill(b"[]", b'{"inputs":[')),
    "texts": (OutcomesBody, b'{"instances":[],"outcomes":[],"time":"%b"}' % (b"x" * COSTLY_BYTES)),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", LARGE_BODIES)
async def test_body_of_records_or_outcomes_is_refused_after_a_few_pieces(name: str) -> None:
    kind, content = LARGE_BODIES[name]
    turns = CountedTurns()
    with pytest.raises((InvalidRequest, TooManyInstances)):
        await LargeBodyDecoder(kind, "usage", "at most {}").decode(content, 1000, turns)
    assert turns.pauses <= 1000 * len(RECORD) / PIECE_BYTES + 2


@pytest.mark.anyio
async def test_large_body_of_records_is_read_as_a_small_one() -> None:
    decoder = LargeBodyDecoder(RecordsBody, "usage", "at most {}")
    content = b'{"time":"2026-01-01","records":[' + b", ".join([RECORD] * 1000) + b"]}"
    assert await decoder.decode(content, 1000, Turns()) == msgspec.json.decode(content, type=RecordsBody)


@pytest.mark.parametrize("name", ["wine", "diabetes"])
@pytest.mark.parametrize("selection", [Selection(), Selection("all"), Selection(top=2)])
def test_bytes_of_answers_are_known_before(models: Path, name: str, selection: Selection) -> None:
    model = load_version(models, models / name / "1")
    for verb in VERBS:
        answers = Operation(model, verb).answer(model.background[:20], selection)
        actual = sum(map(len, answers)) / len(answers)
        assert 0.3 * actual < answer_bytes(model, verb, selection) < 3 * actual


@pytest.mark.anyio
async def test_answer_that_would_be_too_long_is_refused_before_it_is_computed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.http.protocols.route.MAX_ANSWER_BYTES", 20_000)
    settings = Settings(model_dir=models, data_dir=tmp_path, serve_versions="live")
    app = build(settings, build_alerts(settings))
    async with client_of(app) as client:
        content = {"instances": [json.loads(GOOD_ROW)] * 50, "parameters": {"classes": "all"}}
        answer = await client.post("/v1/models/wine:explain", json=content)
    assert answer.status_code == 413
    assert "name fewer classes" in answer.json()["detail"]


@pytest.mark.anyio
async def test_chunks_and_results_of_jobs_are_bounded_in_bytes(
    wine: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = answer_bytes(wine, "explain", Selection("all"))
    monkeypatch.setattr("serving.jobs.requests.MAX_CHUNK_RESULT_BYTES", 3 * each)
    monkeypatch.setattr("serving.jobs.requests.MAX_RESULT_BYTES", 10 * each)
    reader = JobReader(Registry([wine]), max_rows=100, chunk_rows=50)
    asked = {"operation": "explain", "model": "wine", "parameters": {"classes": "all"}}
    rows = [json.loads(GOOD_ROW)] * 10
    request = await reader.read_json(json.dumps(asked | {"instances": rows}).encode(), "")
    assert len(request.inputs) == 4
    with pytest.raises(TooManyInstances):
        await reader.read_json(json.dumps(asked | {"instances": [*rows, *rows]}).encode(), "")
