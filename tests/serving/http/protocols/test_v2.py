"""The Open Inference Protocol gives the answers of `:predict`, to the bit, in whatever form rows and answers are."""

from __future__ import annotations

import gzip
import json
import math
import struct
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serving.http.protocols.conftest import Caller, samples

KINDS = ("classifier", "numbered", "regressor", "margins", "outliers", "targets", "people", "identifiers", "texts")
MATRICES = ("classifier", "numbered", "regressor", "margins", "outliers", "targets")
BINARY = {
    "FP64": "<f8",
    "FP32": "<f4",
    "FP16": "<f2",
    "INT64": "<i8",
    "UINT64": "<u8",
    "INT8": "i1",
    "UINT16": "<u2",
    "BOOL": "?",
}


def instances(model: str, count: int = 40) -> list[dict[str, Any]]:
    """Rows of the table that a model was fitted on, as JSON has them."""
    rows: list[dict[str, Any]] = json.loads(
        samples()[model][1].head(count).to_json(orient="records", double_precision=15)
    )
    return rows


def columns(rows: list[dict[str, Any]], *, flat: bool = True) -> list[dict[str, Any]]:
    """A tensor for each feature."""
    tensors = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        kind = next(type(value) for value in values if value is not None)
        datatype = {str: "BYTES", bool: "BOOL", int: "INT64", float: "FP64"}[kind]
        shape, data = ([len(rows)], values) if flat else ([len(rows), 1], [[value] for value in values])
        tensors.append({"name": name, "shape": shape, "datatype": datatype, "data": data})
    return tensors


def matrix(rows: list[dict[str, Any]], datatype: str = "FP64") -> list[dict[str, Any]]:
    """One tensor of all features."""
    data = [value for row in rows for value in row.values()]
    return [{"name": "rows", "shape": [len(rows), len(rows[0])], "datatype": datatype, "data": data}]


def texts(values: list[Any]) -> bytes:
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


def binary(tensor: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A tensor whose data follows the JSON."""
    data: list[Any] = np.ravel(tensor["data"]).tolist()
    values = [math.nan if value is None else value for value in data]
    content = texts(values) if tensor["datatype"] == "BYTES" else np.array(values, BINARY[tensor["datatype"]]).tobytes()
    head = {name: value for name, value in tensor.items() if name != "data"}
    return head | {"parameters": {"binary_data_size": len(content)}}, content


def infer_binary(caller: Caller, model: str, inputs: list[dict[str, Any]], **members: Any) -> httpx.Response:
    heads, contents = zip(*map(binary, inputs), strict=True)
    head = json.dumps({"inputs": heads, **members}).encode()
    body = head + b"".join(contents)
    return caller.post(f"/v2/models/{model}/infer", body, inference_header_content_length=str(len(head)))


def tensors_of(answer: httpx.Response) -> dict[str, Any]:
    """The output tensors of an answer, JSON or binary, as nested lists by name."""
    assert answer.status_code == 200, answer.text
    length = answer.headers.get("inference-header-content-length")
    if length is None:
        assert answer.headers["content-type"] == "application/json"
        head, rest = answer.json(), b""
    else:
        assert answer.headers["content-type"] == "application/octet-stream"
        head, rest = json.loads(answer.content[: int(length)]), answer.content[int(length) :]
    found = {}
    for tensor in head["outputs"]:
        if "data" in tensor:
            cells = np.array(tensor["data"], dtype=object)
        else:
            size = tensor["parameters"]["binary_data_size"]
            content, rest = rest[:size], rest[size:]
            cells = (
                read_texts(content)
                if tensor["datatype"] == "BYTES"
                else np.frombuffer(content, BINARY[tensor["datatype"]])
            )
        found[tensor["name"]] = np.asarray(cells).reshape(tensor["shape"]).tolist()
    assert rest == b""
    return found


def read_texts(content: bytes) -> Any:
    found = []
    while content:
        size = struct.unpack("<I", content[:4])[0]
        found.append(content[4 : 4 + size].decode())
        content = content[4 + size :]
    return np.array(found, dtype=object)


def expected(predictions: list[Any]) -> dict[str, Any]:
    """The tensors that predictions of our own protocol would be."""
    first = predictions[0]
    if isinstance(first, float):
        return {"predict": [[one] for one in predictions]}
    if "prediction" in first:
        return {"predict": [list(one["prediction"].values()) for one in predictions]}
    found = {"predict": [[one["label"]] for one in predictions]}
    if "probabilities" in first:
        found["predict_proba"] = [list(one["probabilities"].values()) for one in predictions]
    elif "margins" in first:
        found["decision_function"] = [list(one["margins"].values()) for one in predictions]
    else:
        found["decision_function"] = [[one["score"]] for one in predictions]
    return found


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("model", KINDS)
def test_columns_get_the_answers_of_predict(caller: Caller, model: str, count: int) -> None:
    rows = instances(model, count)
    wanted = expected(caller.predict(model, rows))
    assert tensors_of(caller.infer(model, columns(rows))) == wanted
    assert tensors_of(caller.infer(model, columns(rows, flat=False))) == wanted
    assert tensors_of(caller.infer(model, columns(rows), parameters={"binary_data_output": True})) == wanted


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("model", MATRICES)
def test_matrix_gets_the_answers_of_predict(caller: Caller, model: str, count: int) -> None:
    rows = instances(model, count)
    wanted = expected(caller.predict(model, rows))
    (tensor,) = matrix(rows)
    nested = tensor | {"data": np.reshape(tensor["data"], tensor["shape"]).tolist()}
    assert tensors_of(caller.infer(model, [tensor])) == wanted
    assert tensors_of(caller.infer(model, [nested])) == wanted
    assert tensors_of(infer_binary(caller, model, [tensor])) == wanted
    assert tensors_of(infer_binary(caller, model, [tensor], parameters={"binary_data_output": True})) == wanted


@pytest.mark.parametrize("model", ["people", "identifiers", "texts"])
def test_columns_of_texts_and_categories_in_binary(caller: Caller, model: str) -> None:
    rows = [row for row in instances(model) if None not in row.values()]
    assert tensors_of(infer_binary(caller, model, columns(rows))) == expected(caller.predict(model, rows))


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "INT64", "INT8", "UINT16", "BOOL"])
def test_every_datatype_of_numbers_is_the_number_that_it_holds(caller: Caller, datatype: str) -> None:
    values = np.array([[1, 0, 1], [0, 1, 1]]).astype(BINARY[datatype])
    if datatype.startswith("FP"):
        values = values + np.array(0.1, BINARY[datatype])
    tensor = {"name": "x", "shape": [2, 3], "datatype": datatype, "data": values.ravel().tolist()}
    wanted = expected(caller.predict("regressor", values.astype(float).tolist()))
    assert tensors_of(caller.infer("regressor", [tensor])) == wanted
    assert tensors_of(infer_binary(caller, "regressor", [tensor])) == wanted


def test_numbers_in_json_are_rounded_to_their_datatype_as_in_binary(caller: Caller) -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP16", "data": [0.1, 0.2, 0.3]}
    rounded = np.array([[0.1, 0.2, 0.3]], "<f2").astype(float).tolist()
    assert tensors_of(caller.infer("targets", [tensor])) == expected(caller.predict("targets", rounded))


@pytest.mark.parametrize("datatype", ["INT64", "UINT64"])
def test_large_whole_numbers_are_not_rounded_and_have_limits(caller: Caller, datatype: str) -> None:
    largest = int(np.iinfo(BINARY[datatype]).max)
    tensor = {"name": "x", "shape": [1, 3], "datatype": datatype, "data": [largest, None, 2]}
    for wrong in (largest + 1, -(2**63) - 1, 0.5, 1e300, 2**70):
        refused = caller.infer("targets", [tensor | {"data": [largest, wrong, 1]}])
        assert refused.status_code == 400
        assert "whole numbers" in refused.text
    wanted = expected(caller.predict("targets", [[largest, 1, 2]]))
    assert tensors_of(caller.infer("targets", [tensor | {"data": [largest, 1, 2]}])) == wanted
    assert "must not be null" in caller.infer("targets", [tensor]).text


def test_large_whole_numbers_are_not_rounded_in_the_pieces_of_a_large_array(caller: Caller) -> None:
    ids = [2**53] * 400 + [2**53 + 1, 2**62 + 1] * 200
    inputs = json.dumps([{"name": "id", "shape": [800], "datatype": "INT64", "data": ids}]).replace(" ", " " * 1500)
    answer = caller.post(
        "/v2/models/identifiers/infer", b'{"inputs":%b,"outputs":[{"name":"label"}]}' % inputs.encode()
    )
    assert answer.json()["outputs"][0]["data"] == ["x"] * 400 + ["y", "z"] * 200


def test_missing_values_are_null_or_nan_or_absent(caller: Caller) -> None:
    row = {"age": 40, "income": None, "city": None, "is_member": True}
    wanted = expected(caller.predict("people", [row]))
    sent = columns([row | {"income": 1.5, "city": "Bern"}])
    null = [one | {"data": [row[one["name"]]]} for one in sent]
    absent = [one for one in null if one["data"] != [None]]
    income = {"name": "income", "shape": [1], "datatype": "FP64", "data": [math.nan]}
    assert tensors_of(caller.infer("people", null)) == wanted
    assert tensors_of(caller.infer("people", absent)) == wanted
    assert tensors_of(infer_binary(caller, "people", [*absent, income])) == wanted


def test_outputs_are_chosen_in_their_order_and_each_in_its_form(caller: Caller) -> None:
    rows = instances("classifier", 2)
    outputs = [{"name": "predict_proba", "parameters": {"binary_data": True}}, {"name": "label"}]
    answer = caller.infer("classifier", matrix(rows), outputs=outputs)
    predictions = caller.predict("classifier", rows)
    assert tensors_of(answer) == {
        "predict_proba": [list(one["probabilities"].values()) for one in predictions],
        "label": [[one["label"]] for one in predictions],
    }
    head = json.loads(answer.content[: int(answer.headers["inference-header-content-length"])])
    assert [tensor["name"] for tensor in head["outputs"]] == ["predict_proba", "label"]


@pytest.mark.parametrize("parameters", [{}, {"binary_data": True}])
def test_explanations_are_three_tensors(caller: Caller, parameters: dict[str, Any]) -> None:
    rows = instances("classifier", 3)
    outputs = [{"name": "explain", "parameters": parameters}]
    explained = caller.predict("classifier", rows, "explain")
    assert tensors_of(caller.infer("classifier", matrix(rows), outputs=outputs)) == {
        "explain": [list(one["values"].values()) for one in explained],
        "explain_base_value": [[one["base_value"]] for one in explained],
        "explain_output": [[one["output"]] for one in explained],
    }
    both = caller.infer("classifier", matrix(rows), outputs=[{"name": "predict"}, {"name": "explain_output"}])
    assert list(tensors_of(both)) == ["predict", "explain_output"]


def test_space_of_an_explanation_is_a_parameter_of_its_output(caller: Caller) -> None:
    rows = instances("numbered", 2)
    answer = caller.post(
        "/v1/models/numbered:explain", {"instances": rows, "parameters": {"space": "probability"}}
    ).json()
    outputs = [{"name": "explain_output", "parameters": {"space": "probability"}}]
    found = tensors_of(caller.infer("numbered", matrix(rows), outputs=outputs))
    assert found == {"explain_output": [[one["output"]] for one in answer["explanations"]]}
    wrong = caller.infer("numbered", matrix(rows), outputs=[{"name": "explain", "parameters": {"space": "no"}}])
    assert wrong.status_code == 400


@pytest.mark.parametrize("space", [[], {}, 5, True, None])
def test_space_of_an_explanation_is_a_string(caller: Caller, space: Any) -> None:
    answer = caller.infer(
        "classifier", matrix(instances("classifier", 1)), outputs=[{"name": "explain", "parameters": {"space": space}}]
    )
    assert answer.status_code == 400
    assert answer.json() == {"error": "the parameter space must be a string"}


@pytest.mark.parametrize(
    ("place", "parameters", "words"),
    [
        ("request", {"binary_data_output": "false"}, "true or false"),
        ("request", {"binary_data_output": 0}, "true or false"),
        ("request", {"content_type": ["np"]}, "a string"),
        ("output", {"binary_data": "true"}, "true or false"),
        ("output", {"classification": "3"}, "a whole number"),
        ("output", {"classification": True}, "a whole number"),
        ("input", {"content_type": 5}, "a string"),
        ("input", {"binary_data": {}}, "true or false"),
    ],
)
def test_parameters_of_another_type_are_refused(
    caller: Caller, place: str, parameters: dict[str, Any], words: str
) -> None:
    body: dict[str, Any] = {"inputs": matrix(instances("classifier", 1)), "outputs": [{"name": "predict"}]}
    holder = {"request": body, "output": body["outputs"][0], "input": body["inputs"][0]}[place]
    holder["parameters"] = parameters
    answer = caller.post("/v2/models/classifier/infer", body)
    assert answer.status_code == 400
    assert answer.json() == {"error": f"the parameter {next(iter(parameters))} must be {words}"}


def test_one_row_is_answered_alike_however_it_is_written(caller: Caller) -> None:
    row = instances("classifier", 1)
    values = ", ".join(map(repr, row[0].values()))
    wanted = expected(caller.predict("classifier", row))
    for data in (f"[{values}]", f"[[{values}]]", f"[ [{values}]]", f" [ {values} ] "):
        body = f'{{"inputs": [{{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": {data}}}]}}'
        assert tensors_of(caller.post("/v2/models/classifier/infer", body.encode())) == wanted


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([1, 3], [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]),
        ([2, 3], [[1.0, 2.0, 3.0]]),
        ([2, 3], [1.0, 2.0, 3.0]),
        ([1, 3], [[1.0, 2.0]]),
        ([1, 3], [1.0, 2.0, 3.0, 4.0]),
        ([1, 3], [{"a": 1.0, "b": 2.0, "c": 3.0}]),
        ([1, 3], {"a": 1.0, "b": 2.0, "c": 3.0}),
        ([1, 3], []),
        ([3, 1], [[1.0, 2.0, 3.0]]),
        ([1, 3, 1], [1.0, 2.0, 3.0]),
        ([-1, 3], [[1.0, 2.0, 3.0]]),
    ],
)
def test_data_must_have_the_shape_also_of_a_small_matrix(caller: Caller, shape: list[int], data: Any) -> None:
    tensor = {"name": "x", "shape": shape, "datatype": "FP64", "data": data}
    answer = caller.infer("classifier", [tensor])
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}


def test_answer_repeats_id_and_parameters_and_ignores_what_it_does_not_know(caller: Caller) -> None:
    body = {
        "id": "Grüße-42",
        "model_name": "another",
        "unknown": [1],
        "parameters": {"priority": 3, "timeout": 1, "sequence_id": "x", "binary_data_output": False},
        "inputs": matrix(instances("regressor", 1)),
    }
    answer = caller.post("/v2/models/regressor/infer", body).json()
    assert answer["id"] == "Grüße-42"
    assert answer["parameters"] == {"priority": 3, "timeout": 1, "sequence_id": "x"}
    assert (answer["model_name"], answer["model_version"]) == ("regressor", "1")
    plain = caller.infer("regressor", matrix(instances("regressor", 1))).json()
    assert plain.keys() == {"model_name", "model_version", "outputs"}


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "application/octet-stream", "application/json; charset=UTF-8"]
)
def test_content_type_may_be_missing(caller: Caller, content_type: str | None) -> None:
    body = json.dumps({"inputs": matrix(instances("regressor", 1))}).encode()
    headers = {} if content_type is None else {"content_type": content_type}
    assert caller.post("/v2/models/regressor/infer", body, **headers).status_code == 200


def test_compressed_body_is_read(caller: Caller) -> None:
    body = gzip.compress(json.dumps({"inputs": matrix(instances("regressor", 1))}).encode())
    assert caller.post("/v2/models/regressor/infer", body, content_encoding="gzip").status_code == 200


def test_a_row_that_predict_was_asked_is_found_in_the_cache(caller: Caller) -> None:
    rows = [{"a": 0.123, "b": 0.25, "c": 0.5}]
    caller.predict("regressor", rows)
    answer = caller.infer("regressor", matrix(rows))
    assert answer.headers["x-cache"] == "hit-memory"
    assert "total;dur=" in answer.headers["server-timing"]


def test_a_version_is_asked_by_its_path(caller: Caller) -> None:
    body = {"inputs": matrix(instances("regressor", 1))}
    assert caller.post("/v2/models/regressor/versions/1/infer", body).status_code == 200
    assert caller.post("/v2/models/regressor/versions/9/infer", body).status_code == 404


@pytest.mark.parametrize("large", [300, 1000])
def test_large_bodies_get_the_answers_of_predict(caller: Caller, large: int) -> None:
    random = np.random.default_rng(large)
    rows = [dict(zip("abc", row, strict=True)) for row in random.normal(size=(large, 3)).tolist()]
    wanted = expected(caller.predict("classifier", rows))
    assert tensors_of(caller.infer("classifier", matrix(rows))) == wanted
    assert tensors_of(caller.infer("classifier", columns(rows))) == wanted
    people = (instances("people") * 25)[:large]
    assert tensors_of(caller.infer("people", columns(people))) == expected(caller.predict("people", people))
    with_slow_numbers = matrix(rows)
    with_slow_numbers[0]["data"][0] = 1e-300
    rows[0]["a"] = 1e-300
    assert tensors_of(caller.infer("classifier", with_slow_numbers)) == expected(caller.predict("classifier", rows))


def test_tensorflows_types_are_those_of_the_categories_and_labels(caller: Caller) -> None:
    found = {}
    for model in ("identifiers", "numbered", "people"):
        signature = caller.request("GET", f"/v1/models/{model}/metadata").json()["metadata"]["signature_def"]
        tensors = signature["signature_def"]["serving_default"]
        found[model] = {name: one["dtype"] for name, one in (tensors["inputs"] | tensors["outputs"]).items()}
    assert found["identifiers"]["id"] == "DT_INT64"
    assert (found["people"]["city"], found["people"]["is_member"]) == ("DT_STRING", "DT_BOOL")
    labels = {model: kinds["label"] for model, kinds in found.items()}
    assert labels == {
        "identifiers": "DT_STRING",
        "numbered": "DT_INT64",
        "people": "DT_BOOL",
    }


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_tells_its_extensions(caller: Caller, path: str) -> None:
    answer = caller.request("GET", path).json()
    assert answer["name"] == "forkserve"
    assert "binary_tensor_data" in answer["extensions"]


@pytest.mark.parametrize("model", KINDS)
def test_what_metadata_says_of_tensors_is_so(caller: Caller, model: str) -> None:
    described = caller.request("GET", f"/v2/models/{model}").json()
    rows = instances(model, 2)
    named = {tensor["name"]: tensor for tensor in described["inputs"]}
    sent = matrix(rows) if list(named) == ["input"] else columns(rows)
    assert [one["shape"][1] if len(one["shape"]) == 2 else 1 for one in sent] == [
        tensor["shape"][1] for tensor in described["inputs"]
    ]
    outputs = [{"name": tensor["name"]} for tensor in described["outputs"]]
    answer = caller.infer(model, sent, outputs=outputs).json()
    assert [(one["name"], one["datatype"], one["shape"]) for one in answer["outputs"]] == [
        (one["name"], one["datatype"], [2, one["shape"][1]]) for one in described["outputs"]
    ]
    assert (described["name"], described["versions"]) == (model, ["1"])


def test_health_of_server_and_models(caller: Caller) -> None:
    assert caller.request("GET", "/v2/health/live").json() == {"live": True}
    assert caller.request("GET", "/v2/health/ready").json() == {"ready": True}
    ready = {"name": "people", "ready": True}
    assert caller.request("GET", "/v2/models/people/ready").json() == ready
    assert caller.request("GET", "/v2/models/people/versions/1/ready").json() == ready
    assert caller.request("GET", "/v2/models/people/versions/2/ready").status_code == 404


def test_index_names_every_version(caller: Caller) -> None:
    index = caller.post("/v2/repository/index", {}).json()
    assert {(one["name"], one["version"], one["state"]) for one in index} == {(name, "1", "READY") for name in KINDS}


def test_configuration_names_the_tensors_of_metadata(caller: Caller) -> None:
    config = caller.request("GET", "/v2/models/people/config").json()
    assert {one["name"]: one["data_type"] for one in config["input"]}["city"] == "TYPE_STRING"
    assert config["max_batch_size"] == 1000


def test_statistics_count_rows_and_refusals(caller: Caller) -> None:
    def stats() -> dict[str, Any]:
        (found,) = caller.request("GET", "/v2/models/margins/stats").json()["model_stats"]
        return found  # type: ignore[no-any-return]

    before = stats()
    caller.infer("margins", matrix(instances("margins", 40)))
    caller.infer("margins", [])
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 40
    assert after["execution_count"] - before["execution_count"] == 1
    success, fail = after["inference_stats"]["success"], after["inference_stats"]["fail"]
    assert success["ns"] > before["inference_stats"]["success"]["ns"]
    assert fail["count"] - before["inference_stats"]["fail"]["count"] == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("GET", "/v2/models/people/infer", 405),
        ("POST", "/v2/models/people", 405),
        ("GET", "/v2/no/such/path", 404),
        ("POST", "/v2/repository/models/people/load", 404),
    ],
)
def test_errors_are_those_that_clients_read(caller: Caller, method: str, path: str, status: int) -> None:
    answer = caller.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
