"""Parquet files and Arrow streams that are damaged, lie about their size, or are made to fill memory."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.processes import eventually
from harness.service import Service
from harness.wire import Connection, ask, check_refusal, request
from registry.imports import has_arrow
from serving.process.kernel import descendants, read_memory
from tests.attacks.payloads import PATH, ROW

if not has_arrow():
    pytest.skip("needs pyarrow, the extra `arrow`", allow_module_level=True)

import registry.rows.arrow  # noqa: F401, I001 - before pyarrow, which is hidden from pandas until then
import pyarrow as pa
import pyarrow.parquet as pq

PARQUET, ARROW = "application/vnd.apache.parquet", "application/vnd.apache.arrow.stream"
JOBS = "/v1/jobs?operation=predict&model=wine"
KINDS = [PARQUET, ARROW]
FLAT_BYTES = 24 << 20
"""Private memory that a worker may take: the bodies that it receives, and what its allocator keeps of them."""


@pytest.fixture(scope="module")
def names(service: Service) -> list[str]:
    return list(service.get("/v1/models/wine")["features"])


def good(names: list[str], rows: int = 3) -> pa.Table:
    return pa.table({name: pa.array([float(value)] * rows) for name, value in zip(names, ROW, strict=True)})


def pack(table: pa.Table, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    if kind == PARQUET:
        pq.write_table(table, file, **options)
    else:
        with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
            stream.write_table(table)
    return file.getvalue()


def private(service: Service) -> int:
    return max(read_memory(pid).private for pid in service.workers)


def send(service: Service, path: str, body: bytes, kind: str, **headers: str) -> Any:
    return ask(service, request(path, body, content_type=kind, **headers))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", [PATH, JOBS])
def test_damaged_tables_are_refused(target: Service, names: list[str], path: str, kind: str) -> None:
    whole = pack(good(names), kind)
    dice = random.Random(7)
    damaged = [b"", b"x", b"PAR1", b"PAR1" * 100, b"ARROW1\0\0", b"{}", whole[: len(whole) // 2], whole[:-4]]
    damaged += [whole[:-8] + b"\xff\xff\xff\x7fPAR1", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + whole]
    for _ in range(25):
        broken = bytearray(whole)
        for place in dice.sample(range(len(whole)), 8):
            broken[place] = dice.randrange(256)
        damaged.append(bytes(broken))
    for body in damaged:
        answer = send(target, path, body, kind)
        if answer.status not in (200, 202):  # some bytes are the values themselves
            check_refusal(answer, 400, 413, 422)


def bombs(names: list[str]) -> dict[str, tuple[str, Callable[[], bytes]]]:
    zeros = pa.chunked_array([pa.array(np.zeros(1 << 20))] * 32)
    same = pa.table(dict.fromkeys(names, zeros))
    text = pa.chunked_array([pa.array(["a" * (1 << 20)] * 64)])

    def many_groups() -> bytes:
        file = io.BytesIO()
        with pq.ParquetWriter(file, good(names).schema) as writer:
            for _ in range(300):
                writer.write_table(good(names, 1))
        return file.getvalue()

    return {
        "rows that repeat": (PARQUET, lambda: pack(same, PARQUET, compression="zstd")),
        "pages without a dictionary": (
            PARQUET,
            lambda: pack(same, PARQUET, compression="zstd", use_dictionary=False, data_page_size=1 << 30),
        ),
        "a buffer that inflates": (ARROW, lambda: pack(same.combine_chunks(), ARROW, compression="zstd")),
        "texts in place of numbers": (PARQUET, lambda: pack(pa.table(dict.fromkeys(names, text)), PARQUET)),
        "a dictionary that inflates": (
            ARROW,
            lambda: pack(pa.table(dict.fromkeys(names, text.dictionary_encode())), ARROW, compression="zstd"),
        ),
        "columns without end": (
            PARQUET,
            lambda: pack(pa.table({f"{number}": [1.0] for number in range(5000)}), PARQUET),
        ),
        "row groups without end": (PARQUET, many_groups),
    }


@pytest.mark.parametrize(
    "name",
    [
        "rows that repeat",
        "pages without a dictionary",
        "a buffer that inflates",
        "texts in place of numbers",
        "a dictionary that inflates",
        "columns without end",
        "row groups without end",
    ],
)
def test_bomb_is_refused_and_the_worker_does_not_grow(target: Service, names: list[str], name: str) -> None:
    kind, make = bombs(names)[name]
    body = make()
    before = private(target)
    for path in (PATH, JOBS):
        answer = send(target, path, body, kind)
        if name == "row groups without end":
            assert answer.status in (200, 202)
            continue
        problem = check_refusal(answer, 413, 422)
        assert problem["detail"]
    assert private(target) - before < FLAT_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_body_over_the_limit_is_refused_however_it_comes(target: Service, names: list[str], kind: str) -> None:
    large = pack(pa.table({name: np.random.default_rng(0).random(1 << 16) for name in names}), kind)
    check_refusal(send(target, PATH, large, kind), 413)
    packed = gzip.compress(bytes(80 << 20))
    check_refusal(send(target, JOBS, packed, kind, content_encoding="gzip"), 413)
    small = gzip.compress(pack(good(names), kind))
    assert send(target, PATH, small, kind, content_encoding="gzip").status == 200


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_names_are_checked_before_the_data(target: Service, names: list[str], kind: str) -> None:
    problem = check_refusal(send(target, PATH, pack(good(names, 1001), kind), kind), 413)
    assert "1000" in problem["detail"]
    problem = check_refusal(send(target, JOBS, pack(good(names, 100_001), kind), kind), 413)
    assert "100000" in problem["detail"]
    problem = check_refusal(send(target, JOBS, pack(good(names, 0), kind), kind), 422)
    assert problem["errors"][0]["reason"] == "there must be at least one instance"
    spoilt = good(names).append_column("secret", pa.array(["Zq7marker"] * 3)).drop_columns(names[:1])
    for path in (PATH, JOBS):
        problem = check_refusal(send(target, path, pack(spoilt, kind), kind), 422)
        assert [(error["feature"], error["reason"]) for error in problem["errors"]] == [
            (names[0], "is missing"),
            ("secret", "is not a feature of this model"),
        ]


@pytest.mark.parametrize("query", ["?top=x", "?nothing=1", "?operation=predict", "?classes=all&classes=2&top=-"])
def test_query_that_no_table_has_is_refused(target: Service, names: list[str], query: str) -> None:
    check_refusal(send(target, PATH + query, pack(good(names), PARQUET), PARQUET), 422)


def test_clients_that_leave_free_the_reader_for_others(target: Service, names: list[str]) -> None:
    body = pack(good(names, 900), PARQUET)
    for _ in range(20):
        with Connection(target) as connection:
            assert connection.send(request(JOBS, body * 50, content_type=PARQUET))
    # those whose bodies have come whole may still be read
    assert eventually(lambda: send(target, PATH, body, PARQUET).status == 200)


def test_no_process_but_the_reader_has_the_library(target: Service, names: list[str]) -> None:
    assert send(target, PATH, pack(good(names), PARQUET), PARQUET).status == 200
    assert target.master is not None
    for pid in (target.master, *target.workers):
        assert "libarrow" not in Path(f"/proc/{pid}/maps").read_text()
    readers = [pid for worker in target.workers for pid in descendants(worker)]
    assert any("libarrow" in Path(f"/proc/{pid}/maps").read_text() for pid in readers)
