"""Real clients of the Open Inference Protocol, each in its own environment, against the real service."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.judges import ask_judge, programs
from harness.service import Service

TRITON = """
import json, sys
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException
address, model, rows = sys.argv[1], sys.argv[2], np.array(json.loads(sys.argv[3]))
client = triton.InferenceServerClient(address.removeprefix("http://"))
found = {
    "live": client.is_server_live(), "ready": client.is_server_ready(), "model_ready": client.is_model_ready(model),
    "metadata": client.get_model_metadata(model), "server": client.get_server_metadata(),
    "config": client.get_model_config(model)["name"],
    "index": [one["name"] for one in client.get_model_repository_index()],
    "stats": client.get_inference_statistics(model)["model_stats"][0]["name"],
}
def infer(datatype, kind, binary, binary_out, **more):
    one = triton.InferInput("rows", rows.shape, datatype)
    one.set_data_from_numpy(rows.astype(kind), binary_data=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("predict", "predict_proba")]
    result = client.infer(model, [one], outputs=outputs, request_id="42", **more)
    assert result.get_response()["id"] == "42"
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("predict").ravel()]
    return [labels, result.as_numpy("predict_proba").tolist()]
found["answers"] = [infer("FP64", np.float64, a, b) for a in (True, False) for b in (True, False)]
found["compressed"] = infer("FP64", np.float64, True, True, request_compression_algorithm="gzip",
                            response_compression_algorithm="gzip", timeout=5_000_000, priority=1)
plain = triton.InferInput("rows", rows.shape, "FP64")
plain.set_data_from_numpy(rows)
found["default"] = client.infer(model, [plain]).as_numpy("predict_proba").tolist()
try:
    bad = triton.InferInput("rows", [1, 2], "FP64")
    bad.set_data_from_numpy(rows[:1, :2].copy())
    client.infer(model, [bad])
except InferenceServerException as error:
    found["error"] = [error.status(), error.message()]
print(json.dumps(found))
"""

TRITON_TEXTS = """
import json, sys
import numpy as np
import tritonclient.http as triton
address, model, instances = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
kinds = {str: ("BYTES", object), bool: ("BOOL", bool), int: ("INT64", np.int64), float: ("FP64", np.float64)}
client = triton.InferenceServerClient(address.removeprefix("http://"))
answers = []
for binary in (True, False):
    inputs = []
    for name in instances[0]:
        datatype, kind = kinds[type(instances[0][name])]
        values = np.array([[one[name]] for one in instances], dtype=kind)
        inputs.append(triton.InferInput(name, values.shape, datatype))
        inputs[-1].set_data_from_numpy(values, binary_data=binary)
    answers.append(client.infer(model, inputs).as_numpy("predict_proba").tolist())
print(json.dumps(answers))
"""

KSERVE = """
import asyncio, importlib.util, json, sys, types
import numpy as np
# of kserve only its client of REST: the whole package imports a client of Kubernetes
spec = importlib.util.find_spec("kserve")
package = types.ModuleType("kserve")
package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
sys.modules["kserve"] = package
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import InferInput, InferRequest
address, model, rows = sys.argv[1], sys.argv[2], np.array(json.loads(sys.argv[3]))
async def main():
    found = {}
    v2 = InferenceRESTClient(RESTConfig(protocol="v2", retries=1))
    found["live"] = await v2.is_server_live(address)
    found["ready"] = await v2.is_server_ready(address)
    found["model_ready"] = await v2.is_model_ready(address, model)
    for binary in (False, True):
        one = InferInput("rows", list(rows.shape), "FP64")
        one.set_data_from_numpy(rows, binary_data=binary)
        answer = await v2.infer(address, InferRequest(model_name=model, infer_inputs=[one]), model_name=model)
        outputs = {output.name: output for output in answer.outputs}
        found[f"binary {binary}"] = outputs["predict_proba"].as_numpy().tolist()
    v1 = InferenceRESTClient(RESTConfig(protocol="v1", retries=1))
    found["v1"] = await v1.infer(address, {"instances": rows.tolist()}, model_name=model)
    try:
        await v2.infer(address, InferRequest(model_name="none", infer_inputs=[one]), model_name="none")
    except Exception as error:
        found["error"] = str(error)
    print(json.dumps(found))
asyncio.run(main())
"""


def examples(service: Service, model: str, count: int = 3) -> list[dict[str, Any]]:
    instance = httpx.get(f"{service.address}/v1/models/{model}").json()["example"]
    numbers = [name for name, value in instance.items() if type(value) is float]
    return [instance | {numbers[0]: instance[numbers[0]] * (1 + index / 100)} for index in range(count)]


def predictions(service: Service, model: str, instances: list[Any]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{service.address}/v1/models/{model}:predict", json={"instances": instances}).json()
    found: list[dict[str, Any]] = answer["predictions"]
    return found


def shares(found: list[dict[str, Any]]) -> list[list[float]]:
    return [list(one["probabilities"].values()) for one in found]


def test_triton_sends_and_reads_json_and_binary_data(service: Service) -> None:
    instances = examples(service, "breast-cancer")
    rows = json.dumps([list(one.values()) for one in instances])
    wanted = predictions(service, "breast-cancer", instances)
    found = ask_judge("v2", TRITON, service.address, "breast-cancer", rows)
    both = [[one["label"] for one in wanted], shares(wanted)]
    assert found["answers"] == [both] * 4
    assert found["compressed"] == both
    assert found["default"] == both[1]
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["metadata"]["name"] == found["config"] == found["stats"] == "breast-cancer"
    assert "breast-cancer" in found["index"]
    assert "binary_tensor_data" in found["server"]["extensions"]
    status, message = found["error"]
    assert status == "400"
    assert "is not a feature of this model" in message


def test_triton_sends_columns_of_texts(service: Service) -> None:
    instances = examples(service, "mortgage")
    found = ask_judge("v2", TRITON_TEXTS, service.address, "mortgage", json.dumps(instances))
    assert found == [shares(predictions(service, "mortgage", instances))] * 2


def test_kserve_asks_in_both_protocols(service: Service) -> None:
    instances = examples(service, "breast-cancer")
    rows = json.dumps([list(one.values()) for one in instances])
    wanted = predictions(service, "breast-cancer", instances)
    found = ask_judge("v2", KSERVE, service.address, "breast-cancer", rows)
    assert found["binary False"] == found["binary True"] == shares(wanted)
    assert found["v1"]["predictions"] == wanted
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert "there is no model of that name" in found["error"]


@pytest.mark.parametrize("options", [[], ["--binary-data"]])
def test_mlserver_infer_reads_a_file_of_requests(service: Service, tmp_path: Path, options: list[str]) -> None:
    instances = examples(service, "breast-cancer", 7)
    lines = [
        {"inputs": [{"name": "rows", "shape": [1, len(one)], "datatype": "FP64", "data": list(one.values())}]}
        for one in instances
    ]
    (tmp_path / "in.json").write_text("\n".join(map(json.dumps, lines)))
    address = service.address.removeprefix("http://")
    files = ["-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")]
    command = [str(programs("v2") / "mlserver"), "infer", "-u", address, "-m", "breast-cancer", *files]
    done = subprocess.run(
        [*command, "--batch-size", "3", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    answers = list(map(json.loads, (tmp_path / "out.json").read_text().splitlines()))
    answers.sort(key=lambda one: int(one["parameters"]["batch_index"]))
    found = [next(output for output in one["outputs"] if output["name"] == "predict_proba") for one in answers]
    assert [output["data"] for output in found] == shares(predictions(service, "breast-cancer", instances))
