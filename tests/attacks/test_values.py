"""JSON that no model should see: values that are no numbers, broken text, depth and length."""

from __future__ import annotations

import json
import time

import pytest

from harness.service import Service
from harness.wire import Answer, ask, check_refusal, request
from tests.attacks.payloads import MARKER, PATH, body


def predict(service: Service, content: bytes) -> Answer:
    return ask(service, request(PATH, content))


@pytest.mark.parametrize(
    "value",
    [b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e400", b"-1e400", b"01", b"+1", b".5", b"0x10", b"1_0", b"'1'"],
)
def test_number_that_json_does_not_have_is_not_json(target: Service, value: bytes) -> None:
    check_refusal(predict(target, body(value)), 400)


@pytest.mark.parametrize(
    "value", [b'"nan"', b'"Infinity"', b'"13.2"', b'"1e3"', b'""', b"true", b"false", b"null", b"[]", b"{}", b"[13.2]"]
)
def test_value_that_is_no_number_is_named(target: Service, value: bytes) -> None:
    problem = check_refusal(predict(target, body(value)), 422)
    assert [(error["instance"], error["feature"]) for error in problem["errors"]] == [(0, "alcohol")]


@pytest.mark.parametrize("value", [b"1e308", b"-1e308", b"1" * 30, b"1" * 300])
def test_number_far_outside_the_bounds_is_named(target: Service, value: bytes) -> None:
    problem = check_refusal(predict(target, body(value)), 422)
    assert [error["feature"] for error in problem["errors"]] == ["alcohol"]


@pytest.mark.parametrize("digits", [400, 5_000, 1_000_000])
def test_integer_of_many_digits_is_refused_quickly(target: Service, digits: int) -> None:
    started = time.perf_counter()
    check_refusal(predict(target, body(b"1" * digits)), 400, 422)
    assert time.perf_counter() - started < 5


def test_many_wrong_values_make_a_short_answer(target: Service) -> None:
    rows = [[MARKER] * 13] * 1000
    content = json.dumps({"instances": rows}).encode() + b" " * 600_000
    answer = predict(target, content)
    problem = check_refusal(answer, 422)
    assert len(problem["errors"]) == 20
    assert MARKER.encode() not in answer.body


@pytest.mark.parametrize("count", [1_000, 200_000])
def test_row_of_many_texts_makes_a_short_answer(target: Service, count: int) -> None:
    answer = predict(target, json.dumps({"instances": [["x"] * count]}).encode())
    assert check_refusal(answer, 422)["errors"] == [
        {"instance": 0, "feature": None, "reason": f"must have 13 values, has {count}"}
    ]


def test_object_of_many_unknown_features_makes_a_short_answer(target: Service) -> None:
    names = {f"{MARKER * 10}{number}": "x" for number in range(30_000)}
    answer = predict(target, json.dumps({"instances": [names]}).encode())
    check_refusal(answer, 422)
    assert MARKER.encode() not in answer.body


@pytest.mark.parametrize("name", [f"{MARKER}{'x' * 100}", f"{MARKER}\u202e", f"{MARKER}\n", f"{MARKER}\x1b[2J"])
def test_unreadable_name_of_a_feature_is_not_echoed(target: Service, name: str) -> None:
    answer = predict(target, json.dumps({"instances": [{name: 1}]}).encode())
    features = [error["feature"] for error in check_refusal(answer, 422)["errors"]]
    assert "(unreadable)" in features
    assert MARKER.encode() not in answer.body


@pytest.mark.parametrize("name", [f"{MARKER}{'x' * 200}", f"{MARKER}\u202e", f"{MARKER}\n", f"{MARKER}\x1b[2J"])
def test_unreadable_name_of_a_field_is_not_echoed(target: Service, name: str) -> None:
    answer = predict(target, json.dumps({"instances": [[1]], name: 1}).encode())
    check_refusal(answer, 422)
    assert MARKER.encode() not in answer.body


@pytest.mark.parametrize(
    "text",
    [
        rb'"\ud800"',
        rb'"\udc00\ud800"',
        b'"\xff"',
        b'"\xc3\x28"',
        b'"\xed\xa0\x80"',
        b'"\xf8\xa1\xa1\xa1\xa1"',
        b'"\x00"',
        b'"a\nb"',
        rb'"\u12"',
    ],
)
@pytest.mark.parametrize(
    "place", [b'{"instances":[[%s]]}', b'{"instances":[{%s:1}]}', b"%s", b'{%s:1,"instances":[[1]]}']
)
def test_broken_text_is_not_json(target: Service, text: bytes, place: bytes) -> None:
    check_refusal(predict(target, place % text), 400)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[", b"nonsense", b'{"instances":[[1]]}x', b'{"instances":[[1,]]}', b"\xef\xbb\xbf{}"]
)
def test_text_that_is_not_json_is_refused(target: Service, content: bytes) -> None:
    check_refusal(predict(target, content), 400)


@pytest.mark.parametrize("levels", [17, 900, 5_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["arrays", "objects"])
@pytest.mark.parametrize(
    "place",
    [
        b"%s",
        b'{"instances":%s}',
        b'{"instances":[%s]}',
        b'{"instances":[[%s]]}',
        b'{"unknown":%s,"instances":[[1]]}',
        b'{"parameters":%s}',
    ],
    ids=["all", "instances", "instance", "value", "unknown", "parameters"],
)
def test_deep_nesting_is_refused(target: Service, place: bytes, opening: bytes, closing: bytes, levels: int) -> None:
    check_refusal(predict(target, place % (opening * levels + b"1" + closing * levels)), 400)


@pytest.mark.parametrize("levels", [900, 100_000])
def test_deep_nesting_that_never_closes_is_refused(target: Service, levels: int) -> None:
    check_refusal(predict(target, b'{"instances":[' + b"[" * levels), 400)


def test_same_key_many_times_is_refused_or_the_last_one_counts(target: Service) -> None:
    content = b'{"instances":[[1]],' * 1 + b'"instances":[],' * 100_000 + body()[1:]
    assert predict(target, content).status == 200
