"""`:predict`: what it takes, what it answers, and how it says what is wrong."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

MODELS = ["breast-cancer", "diabetes", "mortgage", "wine"]
Instance = dict[str, Any]


def example(client: httpx.Client, model: str) -> Instance:
    instance: Instance = client.get(f"/v1/models/{model}").json()["example"]
    return instance


def predict(client: httpx.Client, model: str, *instances: Any, **headers: str) -> httpx.Response:
    return client.post(f"/v1/models/{model}:predict", json={"instances": list(instances)}, headers=headers)


def faults(answer: httpx.Response) -> list[tuple[int, str | None, str]]:
    """(instance, feature, reason) of a 422."""
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return [(error["instance"], error["feature"], error["reason"]) for error in answer.json()["errors"]]


@pytest.mark.parametrize("model", MODELS)
def test_example_of_every_model_is_predicted(client: httpx.Client, model: str) -> None:
    answer = predict(client, model, example(client, model))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"model", "version", "predictions"}
    assert (answer.json()["model"], answer.json()["version"]) == (model, "1")
    (prediction,) = answer.json()["predictions"]
    if model == "diabetes":
        assert isinstance(prediction, float)
        return
    assert prediction.keys() == {"label", "probabilities"}
    assert sum(prediction["probabilities"].values()) == pytest.approx(1)
    assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].__getitem__)


@pytest.mark.parametrize("model", MODELS)
def test_many_are_answered_like_each_alone_and_in_order(client: httpx.Client, model: str) -> None:
    base = example(client, model)
    schema = client.get(f"/v1/models/{model}").json()["schema"]["properties"]
    name = next(name for name, feature in schema.items() if feature["type"] in ("number", ["number", "null"]))
    low, high = schema[name]["x-seen"]["minimum"], schema[name]["x-seen"]["maximum"]
    instances = [base | {name: low + (high - low) * step / 24} for step in range(25)]
    singles = [predict(client, model, instance).json()["predictions"][0] for instance in instances]
    batch = predict(client, model, *instances).json()["predictions"]
    assert len({str(single) for single in singles}) > 1, "the test needs instances that differ"
    assert [flat(one) for one in batch] == [pytest.approx(flat(one), rel=1e-12) for one in singles]


def flat(prediction: Any) -> list[Any]:
    """A prediction's numbers."""
    return list(prediction["probabilities"].values()) if isinstance(prediction, dict) else [prediction]


@pytest.mark.parametrize("model", MODELS)
def test_arrays_in_schema_order_are_answered_like_objects(client: httpx.Client, model: str) -> None:
    instance = example(client, model)
    order = client.get(f"/v1/models/{model}").json()["features"]
    shuffled = dict(sorted(instance.items(), reverse=True))
    by_name = predict(client, model, shuffled).json()
    assert predict(client, model, [instance[name] for name in order]).json() == by_name
    assert predict(client, model, instance).json() == by_name


def test_version_can_be_named(client: httpx.Client) -> None:
    instances = {"instances": [example(client, "wine")]}
    named = client.post("/v1/models/wine/versions/1:predict", json=instances)
    assert named.status_code == 200
    assert named.json() == client.post("/v1/models/wine:predict", json=instances).json()


@pytest.mark.parametrize(
    "path", ["/v1/models/none:predict", "/v1/models/wine/versions/2:predict", "/v1/models/none/versions/1:predict"]
)
def test_unknown_model_or_version_is_not_found(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={"instances": [[1]]})
    assert answer.status_code == 404
    assert answer.json()["detail"] == (
        "the model has no such version; GET /v1/models lists all"
        if "wine" in path
        else "there is no model of that name; GET /v1/models lists all"
    )


def test_unknown_feature_is_named(client: httpx.Client) -> None:
    answer = predict(client, "wine", example(client, "wine"), example(client, "wine") | {"colour": "red"})
    assert faults(answer) == [(1, "colour", "is not a feature of this model")]


def test_missing_features_are_named(client: httpx.Client) -> None:
    instance = example(client, "wine")
    del instance["hue"], instance["ash"]
    assert faults(predict(client, "wine", instance)) == [(0, "ash", "is missing"), (0, "hue", "is missing")]


def test_wrong_values_are_named_with_missing_and_unknown_ones(client: httpx.Client) -> None:
    instance = example(client, "wine") | {"colour": 1, "ash": "x"}
    del instance["hue"]
    found = faults(predict(client, "wine", instance))
    assert {(feature, reason) for _, feature, reason in found} == {
        ("hue", "is missing"),
        ("colour", "is not a feature of this model"),
        ("ash", "must be a number"),
    }


def test_rows_of_other_lengths_are_named(client: httpx.Client) -> None:
    row = list(example(client, "wine").values())
    assert faults(predict(client, "wine", row, row[:-1], [*row, 1.0], [])) == [
        (1, None, "must have 13 values, has 12"),
        (2, None, "must have 13 values, has 14"),
        (3, None, "must have 13 values, has 0"),
    ]


def test_objects_and_arrays_are_not_mixed(client: httpx.Client) -> None:
    instance = example(client, "wine")
    row = list(instance.values())
    assert faults(predict(client, "wine", instance, row)) == [(1, None, "must be an object, like the first")]
    assert faults(predict(client, "wine", row, instance)) == [(1, None, "must be an array, like the first")]


@pytest.mark.parametrize("instance", [1, "text", None, True])
def test_instance_that_is_neither_object_nor_array_is_named(client: httpx.Client, instance: Any) -> None:
    assert faults(predict(client, "wine", instance)) == [(0, None, "must be an object or an array")]


@pytest.mark.parametrize("edge", ["minimum", "maximum"])
def test_bounds_are_inclusive_and_enforced(client: httpx.Client, edge: str) -> None:
    instance = example(client, "wine")
    bound = client.get("/v1/models/wine").json()["schema"]["properties"]["proline"][edge]
    outside = bound + (1 if edge == "maximum" else -1)
    assert predict(client, "wine", instance | {"proline": bound}).status_code == 200
    ((index, feature, reason),) = faults(predict(client, "wine", instance | {"proline": outside}))
    assert (index, feature) == (0, "proline")
    assert re.fullmatch(r"must be between \S+ and \S+", reason)


@pytest.mark.parametrize("value", ["Boston", "suffolk", "", 0, True, ["Suffolk"]])
def test_category_that_was_never_seen_is_refused_with_those_that_were(client: httpx.Client, value: Any) -> None:
    instance = example(client, "mortgage") | {"county": value}
    assert faults(predict(client, "mortgage", instance)) == [(0, "county", "must be one of Suffolk, other")]


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", "yes"])
def test_boolean_is_true_or_false_only(client: httpx.Client, value: Any) -> None:
    instance = example(client, "mortgage") | {"self_employed": value}
    assert faults(predict(client, "mortgage", instance)) == [(0, "self_employed", "must be true or false")]


def test_null_stands_for_a_missing_value_only_where_the_sample_had_some(client: httpx.Client) -> None:
    instance = example(client, "mortgage")
    assert predict(client, "mortgage", instance | {"liquid_assets": None}).status_code == 200
    refused = predict(client, "mortgage", instance | {"loan_amount": None, "county": None, "gift": None})
    assert {(feature, reason) for _, feature, reason in faults(refused)} == {
        (name, "must not be null") for name in ("loan_amount", "county", "gift")
    }


def test_whole_number_may_be_sent_as_integer_or_as_float(client: httpx.Client) -> None:
    instance = example(client, "wine")
    assert (
        predict(client, "wine", instance | {"proline": 700}).json()
        == predict(client, "wine", instance | {"proline": 700.0}).json()
    )


def test_no_instances_are_refused(client: httpx.Client) -> None:
    assert faults(predict(client, "wine")) == [(0, None, "there must be at least one instance")]


def test_a_thousand_instances_are_answered_and_one_more_is_refused(client: httpx.Client) -> None:
    row = list(example(client, "wine").values())
    assert len(predict(client, "wine", *[row] * 1000).json()["predictions"]) == 1000
    refused = predict(client, "wine", *[row] * 1001)
    assert refused.status_code == 413
    assert "1000 instances" in refused.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [{}, {"instances": {}}, {"instances": 1}, {"instances": None}, {"inputs": [[1]]}, {"instances": [[1]], "x": 1}],
)
def test_other_bodies_are_refused(client: httpx.Client, body: Any) -> None:
    assert client.post("/v1/models/wine:predict", json=body).status_code == 422


@pytest.mark.parametrize(
    "parameters",
    [{}, {"classes": "all"}, {"classes": "predicted"}, {"classes": ["class_0"]}, {"top": 3}, {"space": "margin"}, None],
)
def test_parameters_of_explanations_are_taken_and_change_nothing(client: httpx.Client, parameters: Any) -> None:
    body = {"instances": [example(client, "wine")]}
    plain = client.post("/v1/models/wine:predict", json=body)
    answer = client.post("/v1/models/wine:predict", json=body | {"parameters": parameters})
    assert answer.status_code == 200
    assert answer.json() == plain.json()


USELESS = [
    {"unknown": 1},
    {"top": "3"},
    {"top": 1.5},
    {"top": 0},
    {"top": 10**30},
    {"classes": 1},
    {"classes": []},
    {"classes": ["a"]},
    {"classes": "bogus"},
    {"space": "value"},
    {"space": "bogus"},
    [],
    "all",
]


@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize("parameters", USELESS, ids=str)
def test_parameters_that_mean_nothing_are_refused(client: httpx.Client, verb: str, parameters: Any) -> None:
    body = {"instances": [example(client, "wine")], "parameters": parameters}
    assert client.post(f"/v1/models/wine:{verb}", json=body).status_code == 422
    job = {"operation": verb, "model": "wine"} | body
    assert client.post("/v1/jobs", json=job).status_code == 422


@pytest.mark.parametrize("given", ["5", "5.5", "30", "1000000"])
def test_deadline_may_be_shortened(client: httpx.Client, given: str) -> None:
    headers = {"X-Request-Timeout": given}
    body = {"instances": [example(client, "wine")]}
    assert client.post("/v1/models/wine:predict", json=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "given", ["", "0", "0.0", "-1", "+1", "nan", "inf", "1e3", "1s", "1,5", "9" * 400, "\u0661"], ids=ascii
)
def test_deadline_that_is_no_number_of_seconds_is_refused(client: httpx.Client, given: str) -> None:
    body = {"instances": [example(client, "wine")]}
    answer = client.post("/v1/models/wine:predict", json=body, headers={b"X-Request-Timeout": given.encode()})
    assert answer.status_code == 400
    assert "X-Request-Timeout" in answer.json()["detail"]


def test_answer_tells_where_the_time_went(client: httpx.Client) -> None:
    answer = predict(client, "wine", example(client, "wine"))
    timing = answer.headers["server-timing"]
    parts = dict(part.split(";dur=") for part in timing.split(", "))
    assert list(parts) == ["decode", "cache", "queue", "model", "total"]
    assert all(float(milliseconds) >= -0.001 for milliseconds in parts.values())
    assert sum(map(float, parts.values())) == pytest.approx(2 * float(parts["total"]), abs=0.01)
    assert answer.headers["x-cache"] in ("hit-memory", "miss", "coalesced")


def test_request_id_is_kept_when_it_is_well_formed(client: httpx.Client) -> None:
    answer = client.get("/v1/models/none", headers={"X-Request-ID": "my-id.1_2"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "my-id.1_2"


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "a/b", "\xe4", "{}"], ids=ascii)
def test_request_id_is_replaced_when_it_is_not(client: httpx.Client, given: str) -> None:
    headers = {b"X-Request-ID": given.encode()}
    ids = [client.get("/v1/models/none", headers=headers).json()["request_id"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert all(re.fullmatch("[0-9a-f]{24}", request_id) for request_id in ids)
