"""JSON that no model should see: values that are no numbers, broken text, depth and length."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest

from harness.apps import ask_app
from harness.jobs import ended, send, send_table
from harness.service import Service
from harness.wire import Answer, Connection, ask, check_refusal, request
from registry.errors import ResultNotFinite
from serving.app import build, build_alerts
from serving.settings import Settings
from tests.attacks.payloads import MARKER, PATH, ROW, body
from tests.cases import cases


def predict(service: Service, content: bytes) -> Answer:
    return ask(service, request(PATH, content))


def check_refused(target: Service, contents: Iterable[bytes], status: int = 400, **wrong: object) -> None:
    """Check that each is refused; with `wrong`, for one error that has these fields."""
    with cases() as case:
        for content in contents:
            with case(content):
                problem = check_refusal(predict(target, content), status)
                if wrong:
                    (error,) = problem["errors"]
                    assert error | wrong == error


def test_number_that_json_does_not_have_is_not_json(target: Service) -> None:
    values = [b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e400", b"-1e400", b"01", b"+1", b".5", b"0x10", b"1_0"]
    check_refused(target, map(body, [*values, b"'1'"]))


def test_value_that_is_no_number_is_named(target: Service) -> None:
    texts = [b'"nan"', b'"Infinity"', b'"13.2"', b'"1e3"', b'""']
    others = [b"true", b"false", b"null", b"[]", b"{}", b"[13.2]"]
    check_refused(target, map(body, texts + others), 422, instance=0, feature="alcohol")


def test_number_far_outside_the_bounds_is_named(target: Service) -> None:
    values = [b"1e308", b"-1e308", b"1" * 30, b"1" * 300]
    check_refused(target, map(body, values), 422, feature="alcohol")


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


BROKEN_TEXTS = [
    rb'"\ud800"',
    rb'"\udc00\ud800"',
    b'"\xff"',
    b'"\xc3\x28"',
    b'"\xed\xa0\x80"',
    b'"\xf8\xa1\xa1\xa1\xa1"',
    b'"\x00"',
    b'"a\nb"',
    rb'"\u12"',
]


def test_broken_text_is_not_json(target: Service) -> None:
    places = [b'{"instances":[[%s]]}', b'{"instances":[{%s:1}]}', b"%s", b'{%s:1,"instances":[[1]]}']
    check_refused(target, [place % text for place, text in product(places, BROKEN_TEXTS)])


def test_text_that_is_not_json_is_refused(target: Service) -> None:
    contents = [
        b"",
        b"{",
        b"[",
        b"nonsense",
        b'{"instances":[[1]]}x',
        b'{"instances":[[1,]]}',
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
    ]
    check_refused(target, contents)


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
def test_deep_nesting_is_refused(target: Service, place: bytes, opening: bytes, closing: bytes) -> None:
    levels = (17, 900, 5_000, 100_000)
    check_refused(target, [place % (opening * number + b"1" + closing * number) for number in levels])


def test_deep_nesting_that_never_closes_is_refused(target: Service) -> None:
    check_refused(target, [b'{"instances":[' + b"[" * levels for levels in (900, 100_000)])


def test_same_key_many_times_is_refused_or_the_last_one_counts(target: Service) -> None:
    content = b'{"instances":[[1]],' * 1 + b'"instances":[],' * 100_000 + body()[1:]
    assert predict(target, content).status == 200


def test_minus_zero_is_a_value_of_its_own_for_a_model_that_computes_with_it(models: Path, tmp_path: Path) -> None:
    settings = Settings(model_dir=models, data_dir=tmp_path, serve_versions="live")
    app = build(settings, build_alerts(settings))

    def source(flavanoids: bytes) -> str:
        row = b",".join((*ROW[:6], flavanoids, *ROW[7:]))
        headers = {"content-type": "application/json"}
        answer = ask_app(app, "POST", PATH, content=b'{"instances":[[%b]]}' % row, headers=headers)
        assert answer.status_code == 200
        return str(answer.headers["x-cache"])

    assert [source(value) for value in (b"0.0", b"0.0", b"-0.0", b"-0.0")] == ["miss", "hit-memory"] * 2


INFINITE = b"[[0.1],[2.5],[0.2],[3.5],[0.1]]"
"""Of these instances, the model "overflowing" has no finite result for the second and the fourth."""

WITHOUT_RESULT = [
    {"instance": place, "feature": None, "reason": "the result of overflowing is not a finite number"}
    for place in (1, 3)
]


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_instances_without_a_finite_result_are_named(impatient: Service, verb: str) -> None:
    path, content = f"/v1/models/overflowing:{verb}", b'{"instances":%b}' % INFINITE
    assert ask(impatient, request(path, b'{"instances":[[0.1],[0.2]]}')).status == 200  # and these rows are cached
    problem = check_refusal(ask(impatient, request(path, content)), 422)
    assert problem["errors"] == WITHOUT_RESULT
    with Connection(impatient) as connection:
        connection.send(request(path, content, accept="text/event-stream", connection="close"))
        answer = connection._reader.read()
    assert b"event: done" not in answer
    (told,) = re.findall(rb'{"type".*}', answer)
    assert json.loads(told)["errors"][0] == WITHOUT_RESULT[0]


def test_a_record_without_a_finite_result_is_named(impatient: Service) -> None:
    records = [{"values": {"value": value}, "time": f"2026-01-0{day}"} for day, value in ((1, 0.1), (2, 2.5), (3, 0.1))]
    path = "/v1/entities/overflowing-one"
    assert ask(impatient, request(f"{path}/records", json.dumps({"records": records}).encode())).status == 201
    problem = check_refusal(ask(impatient, request(f"{path}/predictions", method="GET")), 422)
    assert problem["errors"] == WITHOUT_RESULT[:1]


@pytest.mark.parametrize("operation", ["predict", "explain"])
def test_a_job_names_the_instance_without_a_finite_result(impatient: Service, operation: str) -> None:
    table = b"value\n0.1\n2.5\n0.2\n"
    for answer in (
        send(impatient, operation, "overflowing", json.loads(INFINITE)),
        send_table(impatient, operation, "overflowing", table),
    ):
        job = ended(impatient, answer)
        assert (job["state"], job["error"]) == ("failed", f"the model {ResultNotFinite.REASON} on instance 1")
