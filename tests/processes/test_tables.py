"""Parquet files and Arrow streams in and out of predictions, explanations and jobs: the answers are those of JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from harness.jobs import until
from harness.service import Service
from registry.imports import has_arrow

if not has_arrow():
    pytest.skip("needs pyarrow, the extra `arrow`", allow_module_level=True)

import registry.rows.arrow  # noqa: F401, I001 - before pyarrow, which is hidden from pandas until then
import pyarrow as pa
import pyarrow.parquet as pq

PARQUET, ARROW, CSV = "application/vnd.apache.parquet", "application/vnd.apache.arrow.stream", "text/csv"
TABLES = [PARQUET, ARROW]
MODELS = ["wine", "mortgage", "diabetes"]
"""A classifier, one with categories, and a regressor."""


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.address, timeout=60, trust_env=False) as client:
        yield client


def instances(client: httpx.Client, model: str) -> list[dict[str, Any]]:
    """Two rows that differ in their numbers."""
    example = client.get(f"/v1/models/{model}").json()["example"]
    other = {name: value * 1.01 if isinstance(value, float) else value for name, value in example.items()}
    return [example, other]


def pack(rows: list[dict[str, Any]], kind: str) -> bytes:
    table, file = pa.Table.from_pylist(rows).select(list(reversed(rows[0]))), io.BytesIO()
    if kind == PARQUET:
        pq.write_table(table, file)
    else:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    return file.getvalue()


def unpack(content: bytes, kind: str) -> list[dict[str, Any]]:
    table = pq.read_table(io.BytesIO(content)) if kind == PARQUET else pa.ipc.open_stream(content).read_all()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def lines(content: bytes) -> list[dict[str, Any]]:
    """A CSV, with numbers as numbers."""
    return [
        {name: None if cell == "" else _number(cell) for name, cell in line.items()}
        for line in csv.DictReader(io.StringIO(content.decode()))
    ]


def _number(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize("kind", TABLES)
def test_body_and_answer_may_be_tables(client: httpx.Client, model: str, verb: str, kind: str) -> None:
    rows, path = instances(client, model), f"/v1/models/{model}:{verb}"
    wanted = client.post(path, json={"instances": rows, "parameters": {"top": 2}}).json()
    headers = {"content-type": kind}
    assert client.post(f"{path}?top=2", content=pack(rows, kind), headers=headers).json() == wanted
    answer = client.post(f"{path}?top=2", content=pack(rows, kind), headers=headers | {"accept": kind})
    assert answer.headers["content-type"] == kind
    table = unpack(answer.content, kind)
    assert {line["instance"] for line in table} == {0, 1}
    plain = client.post(path, json={"instances": rows, "parameters": {"top": 2}}, headers={"accept": kind})
    assert unpack(plain.content, kind) == table
    if verb == "explain":
        values = wanted["explanations"][0]["values"]
        assert {name: value for name, value in table[0].items() if value and name in values} == values


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize("kind", TABLES)
def test_job_of_a_table_is_that_of_its_json(
    service: Service, client: httpx.Client, model: str, verb: str, kind: str
) -> None:
    rows = instances(client, model) * 3
    query = (
        {"operation": verb, "model": model, "classes": "all"}
        if verb == "explain"
        else {"operation": verb, "model": model}
    )
    sent = client.post("/v1/jobs", params=query, content=pack(rows, kind), headers={"content-type": kind})
    assert sent.status_code == 202, sent.text
    place = sent.headers["location"]
    until(service, place, state="done")
    parameters = {"classes": "all"} if verb == "explain" else {}
    wanted = client.post(f"/v1/models/{model}:{verb}", json={"instances": rows, "parameters": parameters}).json()
    assert client.get(f"{place}/result").json() == wanted
    table = client.get(f"{place}/result", headers={"accept": kind})
    assert table.headers["content-type"] == kind
    assert unpack(table.content, kind) == lines(client.get(f"{place}/result", headers={"accept": CSV}).content)


def test_reasons_are_those_of_json(client: httpx.Client) -> None:
    rows = instances(client, "mortgage")
    rows[1] = dict.fromkeys(rows[1])
    wanted = client.post("/v1/models/mortgage:predict", json={"instances": rows})
    assert wanted.status_code == 422
    for path in ("/v1/models/mortgage:predict", "/v1/jobs?operation=predict&model=mortgage"):
        for kind in TABLES:
            found = client.post(path, content=pack(rows, kind), headers={"content-type": kind})
            assert (found.status_code, found.json()["errors"]) == (422, wanted.json()["errors"])
