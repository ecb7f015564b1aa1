"""Tensors that are wrong in every way that the Open Inference Protocol allows: refused, with a reason."""

from __future__ import annotations

import asyncio
import json
import struct
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from harness.apps import client_of
from registry.store.add import add_trained
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.settings import Settings

LENGTH = "Inference-Header-Content-Length"
MAX_BYTES = 400_000
GOOD: Mapping[str, Any] = {"name": "x", "shape": [2, 3], "datatype": "FP64", "data": [1, 2, 3, 4, 5, 6]}


def column(name: str, data: Any, datatype: str = "FP64", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data} | more


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Application:
    """Two models: three numbers, and one category."""
    root = tmp_path_factory.mktemp("v2") / "models"
    random = np.random.default_rng(3)
    numbers = pd.DataFrame(random.normal(size=(30, 3)), columns=["a", "b", "c"])
    add_trained(root, "numbers", Trained(estimator=LinearRegression().fit(numbers, numbers["a"]), sample=numbers))
    words = pd.DataFrame({"word": ["yes", "no"] * 15})
    encoded = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(words, [0, 1] * 15)
    add_trained(root, "words", Trained(estimator=encoded, sample=words))
    settings = Settings(model_dir=root, data_dir=root.parent / "data", max_instances=100, max_body_bytes=MAX_BYTES)
    return build(settings, build_alerts(settings))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


def ask(runner: asyncio.Runner, app: Application, model: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def asked() -> httpx.Response:
        async with AsyncExitStack() as closing:
            await app.service.open(closing)
            client = await closing.enter_async_context(client_of(app))
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.post(f"/v2/models/{model}/infer", content=content, headers=named)

    return runner.run(asked())


def check(answer: httpx.Response, reason: str, status: int = 400) -> None:
    """The answer refuses, and says why in the form that clients read."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert reason in answer.json()["error"]
    assert len(answer.content) <= 8 * 1024


def with_binary(*sizes_and_data: tuple[dict[str, Any], bytes]) -> tuple[bytes, str]:
    """A body of tensors and bytes, and the length of its JSON."""
    head = json.dumps({"inputs": [tensor for tensor, _ in sizes_and_data]}).encode()
    return head + b"".join(data for _, data in sizes_and_data), str(len(head))


WRONG: Mapping[str, tuple[Any, str]] = {
    "nothing": (b"", "it is empty"),
    "no object": (b"[1]", "send an object"),
    "no inputs": ({}, "inputs is missing"),
    "inputs empty": ({"inputs": []}, "at least one input"),
    "inputs of numbers": ({"inputs": [1]}, "inputs[0] must be an object"),
    "no shape": ({"inputs": [{"name": "x", "datatype": "FP64", "data": [1]}]}, "lacks shape"),
    "shape of floats": ({"inputs": [{**GOOD, "shape": [1.5, 3]}]}, "must be a whole number"),
    "shape of text": ({"inputs": [{**GOOD, "shape": "2,3"}]}, "must be an array"),
    "shape is empty": ({"inputs": [{**GOOD, "shape": []}]}, "shape must be"),
    "shape of three": ({"inputs": [{**GOOD, "shape": [1, 2, 3]}]}, "shape must be"),
    "shape is negative": ({"inputs": [{**GOOD, "shape": [-1, 3]}]}, "shape must be"),
    "shape has 0": ({"inputs": [{**GOOD, "shape": [0, 3], "data": []}]}, "shape must be"),
    "columns beyond 64 bits": ({"inputs": [{**GOOD, "shape": [1, 2**70]}]}, ""),
    "too few elements": ({"inputs": [{**GOOD, "data": [1, 2, 3]}]}, "6 elements"),
    "too many elements": ({"inputs": [{**GOOD, "data": list(range(7))}]}, "6 elements"),
    "no data": ({"inputs": [{name: GOOD[name] for name in ("name", "shape", "datatype")}]}, "neither data nor"),
    "data is null": ({"inputs": [{**GOOD, "data": None}]}, "data must be an array"),
    "data is an object": ({"inputs": [{**GOOD, "data": {"a": 1}}]}, "data must be an array"),
    "data is nested otherwise": ({"inputs": [{**GOOD, "data": [[1, 2], [3, 4], [5, 6]]}]}, "nested as the shape"),
    "data is ragged": ({"inputs": [{**GOOD, "data": [[1, 2, 3, 4], [5, 6]]}]}, "nested as the shape"),
    "data is nested too deeply": ({"inputs": [{**GOOD, "data": [[[1, 2, 3], [4, 5, 6]]]}]}, "nested as the shape"),
    "data is partly nested": ({"inputs": [{**GOOD, "data": [[1, 2, 3], 4, 5, 6]}]}, "nested as the shape"),
    "data of text": ({"inputs": [{**GOOD, "data": ["1", "2", "3", "4", "5", "6"]}]}, "must be numbers"),
    "data of truth": ({"inputs": [{**GOOD, "data": [True] * 6}]}, "must be numbers"),
    "fractions in INT32": ({"inputs": [{**GOOD, "datatype": "INT32", "data": [1.5] * 6}]}, "INT32 can hold"),
    "300 in UINT8": ({"inputs": [{**GOOD, "datatype": "UINT8", "data": [300] * 6}]}, "UINT8 can hold"),
    "-1 in UINT64": ({"inputs": [{**GOOD, "datatype": "UINT64", "data": [-1] * 6}]}, "UINT64 can hold"),
    "2 in BOOL": ({"inputs": [{**GOOD, "datatype": "BOOL", "data": [2] * 6}]}, "BOOL can hold"),
    "1e300 in FP32": ({"inputs": [{**GOOD, "datatype": "FP32", "data": [1e300] * 6}]}, "must be finite"),
    "NaN in JSON": (b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[NaN,1,2]}]}', "no NaN"),
    "null where it may not be": (
        {"inputs": [{**GOOD, "data": [None, 2, 3, 4, 5, 6]}]},
        "instance 0, a: must not be null",
    ),
    "a number of 400 digits": (
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1%b,1,2]}]}' % (b"0" * 400),
        "",
    ),
    "unknown datatype": ({"inputs": [{**GOOD, "datatype": "FP128"}]}, "datatype must be one of"),
    "datatype in lower case": ({"inputs": [{**GOOD, "datatype": "fp64"}]}, "datatype must be one of"),
    "two columns": ({"inputs": [{**GOOD, "shape": [3, 2]}]}, "is not a feature"),
    "four columns": ({"inputs": [{**GOOD, "shape": [1, 4], "data": [1, 2, 3, 4]}]}, "has 4 columns"),
    "an unknown column": ({"inputs": [column("a", [1]), column("b", [1]), column("z", [1])]}, "is not a feature"),
    "a missing column": ({"inputs": [column("a", [1]), column("b", [1])]}, "c: is missing"),
    "a column twice": ({"inputs": [column("a", [1]), column("b", [1]), column("a", [1])]}, "may be sent once"),
    "columns of two lengths": ({"inputs": [column("a", [1]), column("b", [1, 2]), column("c", [1])]}, "has 2 rows"),
    "matrix and columns": ({"inputs": [GOOD, column("a", [1, 2])]}, "is not a feature"),
    "too many inputs": ({"inputs": [column(name, [1]) for name in "abcd"]}, "at most one for each of 3"),
    "unknown output": ({"inputs": [GOOD], "outputs": [{"name": "logits"}]}, "outputs must be among predict"),
    "probabilities of a regressor": ({"inputs": [GOOD], "outputs": [{"name": "predict_proba"}]}, "outputs must be"),
    "outputs of text": ({"inputs": [GOOD], "outputs": ["predict"]}, "must be an object"),
    "id is a number": ({"inputs": [GOOD], "id": 42}, "id must be a string"),
    "parameters are a list": ({"inputs": [GOOD], "parameters": [1]}, "parameters must be an object"),
    "unknown content type": ({"inputs": [{**GOOD, "parameters": {"content_type": "base64"}}]}, "content_type must be"),
    "shared memory": ({"inputs": [{**GOOD, "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
    "classification": (
        {"inputs": [GOOD], "outputs": [{"name": "predict", "parameters": {"classification": 2}}]},
        "classification is not supported",
    ),
    "texts for numbers": ({"inputs": [column(name, ["1"], "BYTES") for name in "abc"]}, "a: must be a number"),
    "not UTF-8": (b'{"inputs":[{"name":"\xff","shape":[1,3],"datatype":"FP64","data":[1,2,3]}]}', "not UTF-8"),
    "nested without end": (b'{"inputs":' + b"[" * 5000, ""),
    "nested parameters": (b'{"parameters":{"a":' + b"[" * 3000 + b"]" * 3000 + b'},"inputs":[]}', ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_refused_with_the_reason(runner: asyncio.Runner, app: Application, case: str) -> None:
    body, reason = WRONG[case]
    check(ask(runner, app, "numbers", body), reason)


def sized(size: Any, **more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 3], "datatype": "FP64", "parameters": {"binary_data_size": size}} | more


ROW = np.array([1.0, 2.0, 3.0]).tobytes()

WRONG_BINARY: Mapping[str, tuple[list[tuple[dict[str, Any], bytes]], str]] = {
    "short": ([(sized(16), ROW[:16])], "binary_data_size must be 24"),
    "long": ([(sized(32), ROW + ROW[:8])], "binary_data_size must be 24"),
    "beyond the body": ([(sized(24), ROW[:8])], "more than the rest"),
    "bytes left over": ([(sized(24), ROW + b"12345")], "5 bytes more"),
    "negative": ([(sized(-24), ROW)], "binary_data_size must be"),
    "huge": ([(sized(2**62), ROW)], "more than the rest"),
    "text": ([(sized("24"), ROW)], "binary_data_size must be"),
    "truth": ([(sized(True), ROW)], "binary_data_size must be"),  # noqa: FBT003
    "float": ([(sized(24.0), ROW)], "binary_data_size must be"),
    "beside data": ([(sized(24, data=[1, 2, 3]), ROW)], "both data and"),
    "overlapping": (
        [(column("a", [1]) | {"parameters": {"binary_data_size": 16}}, ROW)],
        "",
    ),
    "NaN": ([(sized(24), np.array([np.nan, 1, 2]).tobytes())], "a: must not be null"),
    "infinite": ([(sized(24), np.array([np.inf, 1, 2]).tobytes())], "a: must be finite"),
    "BOOL of 2": ([(sized(3, datatype="BOOL"), b"\x00\x01\x02")], "0 or 1"),
    "huge shape": ([(sized(24, shape=[2**40, 2**20]), ROW)], "100 instances"),
    "shape that wraps around": ([(sized(24, shape=[2**32, 2**32]), ROW)], "100 instances"),
}


@pytest.mark.parametrize("case", WRONG_BINARY)
def test_wrong_binary_data_is_refused_with_the_reason(runner: asyncio.Runner, app: Application, case: str) -> None:
    parts, reason = WRONG_BINARY[case]
    body, length = with_binary(*parts)
    answer = ask(runner, app, "numbers", body, **{LENGTH: length})
    check(answer, reason, 413 if "instances" in reason else 400)


WRONG_WORDS: Mapping[str, tuple[bytes, str]] = {
    "not UTF-8": (struct.pack("<I", 2) + b"\xff\xfe", "not UTF-8"),
    "longer than the data": (struct.pack("<I", 2**32 - 1) + b"yes", "longer than the rest"),
    "no length": (b"\x03", "less than the lengths"),
    "more after it": (struct.pack("<I", 3) + b"yes" + b"no", "more bytes than its elements"),
    "another category": (struct.pack("<I", 5) + b"maybe", "must be one of"),
    "half a surrogate": (struct.pack("<I", 3) + b"\xed\xa0\x80", "not UTF-8"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_texts_are_refused_with_the_reason(runner: asyncio.Runner, app: Application, case: str) -> None:
    data, reason = WRONG_WORDS[case]
    tensor = {"name": "word", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    body, length = with_binary((tensor, data))
    check(ask(runner, app, "words", body, **{LENGTH: length}), reason)


@pytest.mark.parametrize("length", ["1000000", "-1", "x", "", "1e3", "0x10", "9" * 40, "+5", " "])
def test_length_of_the_json_is_a_number_within_the_body(runner: asyncio.Runner, app: Application, length: str) -> None:
    check(ask(runner, app, "numbers", {"inputs": [GOOD]}, **{LENGTH: length}), LENGTH)


@pytest.mark.parametrize("length", ["0", "7"])
def test_json_that_is_cut_is_refused(runner: asyncio.Runner, app: Application, length: str) -> None:
    check(ask(runner, app, "numbers", {"inputs": [GOOD]}, **{LENGTH: length}), "the body is not JSON")


@pytest.mark.parametrize("kind", ["text/csv", "application/x-www-form-urlencoded", "application/json; charset=latin-1"])
def test_other_content_is_refused(runner: asyncio.Runner, app: Application, kind: str) -> None:
    check(ask(runner, app, "numbers", {"inputs": [GOOD]}, content_type=kind), "send application/json", 415)


def test_more_rows_and_bytes_than_a_request_may_have_are_refused(runner: asyncio.Runner, app: Application) -> None:
    rows = {"name": "x", "shape": [101, 3], "datatype": "FP64", "data": [0.0] * 303}
    check(ask(runner, app, "numbers", {"inputs": [rows]}), "100 instances", 413)
    check(ask(runner, app, "numbers", b" " * (MAX_BYTES + 1)), "bytes", 413)


def filled(before: bytes, element: bytes, after: bytes) -> bytes:
    """A body of nearly MAX_BYTES that repeats an element."""
    return before + b",".join([element] * ((MAX_BYTES - 300) // (len(element) + 1))) + after


LARGE: Mapping[str, bytes] = {
    "inputs": filled(b'{"inputs":[', b'{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,3]}', b"]}"),
    "inputs of nothing": filled(b'{"inputs":[', b"0", b"]}"),
    "elements": filled(b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[', b"1", b"]}]}"),
    "texts": filled(b'{"inputs":[{"name":"a","shape":[100],"datatype":"BYTES","data":[', b'""', b"]}]}"),
    "arrays": filled(b'{"inputs":[{"name":"x","shape":[100,3],"datatype":"BYTES","data":[', b"[]", b"]}]}"),
    "slow numbers": filled(b'{"inputs":[{"name":"x","shape":[100,3],"datatype":"FP64","data":[', b"1e308", b"]}]}"),
    "a shape": filled(b'{"inputs":[{"name":"x","datatype":"FP64","data":[1],"shape":[', b"1", b"]}]}"),
    "outputs": filled(b'{"inputs":[],"outputs":[', b'{"name":"predict"}', b"]}"),
    "parameters": filled(b'{"inputs":[],"parameters":{"a":"', b"x", b'"}}'),
    "an id": filled(b'{"inputs":[],"id":"', b"x", b'"}'),
    "braces in a text": filled(b'{"inputs":[{"name":"', b"{[", b'","shape":[1,3],"datatype":"FP64","data":[1]}]}'),
}


@pytest.mark.parametrize("case", LARGE)
def test_large_wrong_bodies_are_refused_and_take_no_more_memory(
    runner: asyncio.Runner, app: Application, case: str
) -> None:
    tracemalloc.start()
    try:
        answer = ask(runner, app, "numbers", LARGE[case])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    check(answer, "")
    assert peak < 40 * MAX_BYTES


def test_huge_shape_is_refused_before_anything_is_allocated(runner: asyncio.Runner, app: Application) -> None:
    ask(runner, app, "numbers", {"inputs": [GOOD]})
    tracemalloc.start()
    try:
        check(ask(runner, app, "numbers", {"inputs": [{**GOOD, "shape": [2**31, 2**31]}]}), "instances", 413)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_name_that_is_long_or_unreadable_is_not_repeated(runner: asyncio.Runner, app: Application) -> None:
    for name in ("x" * 1000, "\x1b[31m", "\u202e"):
        answer = ask(runner, app, "numbers", {"inputs": [{**GOOD, "name": name, "datatype": "no"}]})
        check(answer, "an input: datatype")
        assert name not in answer.json()["error"]


def test_wrong_tensors_do_not_harm_the_next(runner: asyncio.Runner, app: Application) -> None:
    for body, _ in WRONG.values():
        ask(runner, app, "numbers", body)
    assert ask(runner, app, "numbers", {"inputs": [GOOD]}).status_code == 200
