"""`:explain`: what it answers, what it shows when asked to, and what it refuses."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from registry.explain.explanation import OTHER
from tests.serving.http.test_predict import MODELS, Instance, example, faults

KINDS = {
    "breast-cancer": ("tree-path-dependent", "probability"),
    "diabetes": ("tree-path-dependent", "value"),
    "mortgage": ("tree-path-dependent", "margin"),
    "wine": ("linear", "margin"),
}


def explain(client: httpx.Client, model: str, *instances: Any, **parameters: Any) -> httpx.Response:
    return client.post(
        f"/v1/models/{model}:explain", json={"instances": list(instances), "parameters": parameters}, timeout=60
    )


def explanations(client: httpx.Client, model: str, *instances: Any, **parameters: Any) -> list[dict[str, Any]]:
    answer = explain(client, model, *instances, **parameters)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["explanations"]
    return items


def variants(client: httpx.Client, model: str, count: int) -> list[Instance]:
    base = example(client, model)
    schema = client.get(f"/v1/models/{model}").json()["schema"]["properties"]
    name = next(name for name, feature in schema.items() if feature["type"] in ("number", ["number", "null"]))
    low, high = schema[name]["x-seen"]["minimum"], schema[name]["x-seen"]["maximum"]
    return [base | {name: low + (high - low) * step / count} for step in range(count)]


@pytest.mark.parametrize("model", MODELS)
def test_contributions_and_base_value_make_the_output(client: httpx.Client, model: str) -> None:
    answer = explain(client, model, example(client, model))
    assert answer.json().keys() == {"model", "version", "explanations"}
    (one,) = answer.json()["explanations"]
    assert (one["method"], one["space"]) == KINDS[model]
    assert list(one["values"]) == client.get(f"/v1/models/{model}").json()["features"]
    assert one["base_value"] + sum(one["values"].values()) == pytest.approx(one["output"], abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_explained_is_what_is_predicted(client: httpx.Client, model: str) -> None:
    instance = example(client, model)
    (one,) = explanations(client, model, instance)
    (prediction,) = client.post(f"/v1/models/{model}:predict", json={"instances": [instance]}).json()["predictions"]
    if one["space"] == "value":
        assert one["output"] == pytest.approx(prediction)
        return
    assert one["label"] == prediction["label"]
    if one["space"] == "probability":
        assert one["output"] == pytest.approx(prediction["probabilities"][one["label"]])


@pytest.mark.parametrize("model", MODELS)
def test_row_is_explained_alone_as_among_others_to_the_last_bit(client: httpx.Client, model: str) -> None:
    instances = variants(client, model, 12)
    together = explanations(client, model, *instances)
    # other parameters make other answers, so these are not the cached ones
    alone = [explanations(client, model, instance, classes="predicted", top=1000)[0] for instance in instances]
    assert together == alone
    assert len({str(one["values"]) for one in alone}) > 1, "the test needs instances that differ"


def test_explanation_is_answered_from_the_cache_with_the_same_bytes(client: httpx.Client) -> None:
    (instance,) = variants(client, "wine", 1)
    answers = [explain(client, "wine", instance, top=3) for _ in range(4)]
    assert len({answer.content for answer in answers}) == 1
    assert "hit-memory" in [answer.headers["x-cache"] for answer in answers]


def test_predictions_and_explanations_of_a_row_are_not_mixed_up(client: httpx.Client) -> None:
    instance = example(client, "diabetes")
    for _ in range(3):
        assert "predictions" in client.post("/v1/models/diabetes:predict", json={"instances": [instance]}).json()
        assert "explanations" in explain(client, "diabetes", instance).json()


def test_all_classes_are_explained_when_asked_for(client: httpx.Client) -> None:
    (one,) = explanations(client, "wine", example(client, "wine"), classes="all")
    assert list(one["classes"]) == ["class_0", "class_1", "class_2"]
    for each in one["classes"].values():
        assert each["base_value"] + sum(each["values"].values()) == pytest.approx(each["output"], abs=1e-9)


def test_listed_classes_are_explained_in_the_order_asked_for(client: httpx.Client) -> None:
    (one,) = explanations(client, "breast-cancer", example(client, "breast-cancer"), classes=["malignant"])
    assert list(one["classes"]) == ["malignant"]


def test_largest_contributions_are_shown_and_the_rest_is_summed(client: httpx.Client) -> None:
    instance = example(client, "breast-cancer")
    (whole,), (short,) = (explanations(client, "breast-cancer", instance, **top) for top in ({}, {"top": 3.0}))
    largest = sorted(whole["values"], key=lambda name: -abs(whole["values"][name]))[:3]
    assert list(short["values"]) == [*largest, OTHER]
    assert sum(short["values"].values()) == pytest.approx(sum(whole["values"].values()))


@pytest.mark.parametrize(
    "parameters",
    [{"top": 0}, {"top": -1}, {"classes": "some"}, {"classes": []}, {"classes": ["class_9"]}],
    ids=str,
)
def test_parameters_that_cannot_be_are_named(client: httpx.Client, parameters: dict[str, Any]) -> None:
    answer = explain(client, "wine", example(client, "wine"), **parameters)
    assert answer.status_code == 422
    assert next(iter(parameters)) in answer.json()["detail"]


@pytest.mark.parametrize("parameters", [{"top": "3"}, {"top": 1.5}, {"classes": 3}, {"unknown": 1}], ids=str)
def test_parameters_of_a_wrong_kind_are_refused(client: httpx.Client, parameters: dict[str, Any]) -> None:
    assert explain(client, "wine", example(client, "wine"), **parameters).status_code == 422


def test_classes_of_a_model_without_any_are_refused(client: httpx.Client) -> None:
    assert explain(client, "diabetes", example(client, "diabetes"), classes=["a"]).status_code == 422


def test_bad_instances_are_refused_as_for_predictions(client: httpx.Client) -> None:
    instance = example(client, "diabetes")
    answer = explain(client, "diabetes", instance, instance | {"bmi": "heavy"})
    assert [(index, feature) for index, feature, _ in faults(answer)] == [(1, "bmi")]


def test_more_rows_than_are_explained_at_once_are_too_many(client: httpx.Client) -> None:
    instance = example(client, "wine")
    assert explain(client, "wine", *[instance] * 500).status_code == 200
    answer = explain(client, "wine", *[instance] * 501)
    assert answer.status_code == 413
    assert "500" in answer.json()["detail"]


def test_many_rows_that_take_long_are_all_explained(client: httpx.Client) -> None:
    instances = variants(client, "breast-cancer", 300)
    items = explanations(client, "breast-cancer", *instances, top=2)
    assert len(items) == 300
    assert items[7] == explanations(client, "breast-cancer", instances[7], top=2)[0]


def test_explainer_is_shown_with_its_model(client: httpx.Client) -> None:
    model = client.get("/v1/models/mortgage").json()
    method, space = KINDS["mortgage"]
    assert model["explainer"] == {
        "method": method,
        "space": space,
        "jobs_only": False,
        "spaces": [space, "probability"],
    }
    assert model["importance"].keys() == set(model["features"])
    assert max(model["importance"].values()) > 0


@pytest.mark.parametrize("model", ["mortgage", "wine"])
def test_probability_is_explained_on_request(client: httpx.Client, model: str) -> None:
    instance = example(client, model)
    (prediction,) = client.post(f"/v1/models/{model}:predict", json={"instances": [instance]}).json()["predictions"]
    (margin,) = explanations(client, model, instance)
    (one,) = explanations(client, model, instance, space="probability")
    assert (margin["space"], one["space"], one["method"]) == ("margin", "probability", "interventional")
    assert one["output"] == prediction["probabilities"][one["label"]]
    assert one["base_value"] + sum(one["values"].values()) == pytest.approx(one["output"], abs=1e-9)
    assert explanations(client, model, instance, space="margin") == [margin]


def test_space_that_a_model_does_not_offer_is_refused(client: httpx.Client) -> None:
    answer = explain(client, "breast-cancer", example(client, "breast-cancer"), space="margin")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "space must be one of probability for this model"
    assert explain(client, "wine", example(client, "wine"), space="dollars").status_code == 422
