"""MLflow's own clients, on the real service: that of deployments, and that of its scoring server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.judges import ask_judge
from harness.service import Service

DEPLOYMENTS = """
import json, sys
from mlflow.deployments import get_deploy_client

client = get_deploy_client(sys.argv[1])
found = []
for model, body in json.loads(sys.argv[2]):
    try:
        found.append(client.predict(endpoint=model, inputs=body))
    except Exception as error:
        found.append(str(error))
print(json.dumps(found))
"""

SCORING_SERVER = """
import json, sys
import pandas as pd
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

client = ScoringServerClient("127.0.0.1", int(sys.argv[1]))
client.wait_server_ready(timeout=10)
frame = pd.DataFrame(json.loads(sys.argv[2]))
answers = [
    client.invoke(frame).get_predictions().iloc[:, 0].tolist(),
    client.invoke(frame[frame.columns[::-1]].set_index(pd.Index([7, 5, 3]))).get_predictions().iloc[:, 0].tolist(),
    client.invoke(frame, params={"method": "predict_proba"}).get_predictions().to_numpy().tolist(),
]
print(json.dumps([client.get_version(), int(frame.isna().sum().sum()), answers]))
"""


COMMAND_LINE = """
import json, sys, tomllib
from click.testing import CliRunner
from mlflow.deployments.cli import commands
from mlflow.deployments.interface import plugin_store

# an editable installation does not learn of new entry points by itself
named = tomllib.load(open("pyproject.toml", "rb"))["project"]["entry-points"]["mlflow.deployments"]
for name, module in named.items():
    plugin_store.register(name, module)
found = []
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(commands, arguments)
    found.append([done.exit_code, done.output, str(done.exception or "")])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Service]:
    """One worker, with a default model, on the paths of a Vertex AI endpoint."""
    environ = {
        "MODEL_DIR": str(models),
        "DEFAULT_MODEL": "mortgage",
        "AIP_PREDICT_ROUTE": "/predict",
        "AIP_HEALTH_ROUTE": "/is-healthy",
        "HOST": "127.0.0.1",
        "WEB_CONCURRENCY": "1",
        "ROLES": "web",
    }
    with Service(environ) as service:
        yield service


def example(service: Service, model: str) -> dict[str, Any]:
    found: dict[str, Any] = service.get(f"/v1/models/{model}")["example"]
    return found


def post(service: Service, path: str, body: Any) -> Any:
    return httpx.post(service.address + path, json=body, trust_env=False).json()


def test_the_deployments_client_predicts(served: Service) -> None:
    wine, diabetes = example(served, "wine"), example(served, "diabetes")
    split = {"columns": list(wine)[::-1], "data": [list(wine.values())[::-1]] * 2}
    proba = {"params": {"method": "predict_proba"}}
    asked = [
        ("wine", {"dataframe_split": split}),
        ("wine", {"dataframe_records": [wine], **proba}),
        ("wine", {"inputs": [list(wine.values())]}),
        ("diabetes", {"inputs": {name: [value] for name, value in diabetes.items()}}),
        ("wine", {"rows": [wine]}),
        ("nothing", {"inputs": [[1]]}),
    ]
    labels, shares, rows, numbers, refused, unknown = ask_judge(
        "mlflow", DEPLOYMENTS, served.address, json.dumps(asked)
    )
    (expected,) = post(served, "/v1/models/wine:predict", {"instances": [wine]})["predictions"]
    assert labels == {"predictions": [expected["label"]] * 2}
    assert shares == {"predictions": [list(expected["probabilities"].values())]}
    assert rows == {"predictions": [expected["label"]]}
    assert (
        numbers["predictions"] == post(served, "/v1/models/diabetes:predict", {"instances": [diabetes]})["predictions"]
    )
    assert "send an object with one of dataframe_split, dataframe_records, instances or inputs" in refused
    assert "there is no model of that name" in unknown


def test_the_command_line_predicts_and_explains(served: Service, tmp_path: Path) -> None:
    wine, target = example(served, "wine"), f"forkserve:{served.address}"
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([wine, wine]))
    asked = [
        ["predict", "-t", target, "--name", "wine", "-I", str(rows)],
        ["predict", "-t", target, "--endpoint", "wine", "-I", str(rows), "-O", str(tmp_path / "out.json")],
        ["explain", "-t", target, "--name", "wine", "-I", str(rows)],
        ["list", "-t", target],
        ["get", "-t", target, "--name", "wine"],
        ["help", "-t", "forkserve"],
        ["predict", "-t", target, "--name", "nothing", "-I", str(rows)],
        ["delete", "-t", target, "--name", "wine"],
    ]
    predicted, written, explained, listed, got, helped, unknown, refused = ask_judge(
        "mlflow", COMMAND_LINE, json.dumps(asked)
    )
    answers = post(served, "/v1/models/wine:predict", {"instances": [wine, wine]})["predictions"]
    expected = {"predictions": [one["label"] for one in answers]}
    assert (predicted[0], json.loads(predicted[1])) == (0, expected), predicted
    assert (written[0], json.loads((tmp_path / "out.json").read_text())) == (0, expected), written
    shown = post(served, "/v1/models/wine:explain", {"instances": [wine]})["explanations"][0]
    first = json.loads(explained[1])[0]
    assert {name: first[name] for name in shown["values"]} == pytest.approx(shown["values"])
    assert "wine" in listed[1]
    assert "wine" in got[1]
    assert "FORKSERVE_URL" in helped[1]
    assert unknown[0]
    assert "there is no model of that name" in unknown[2]
    assert refused[0]
    assert "forkserve add" in refused[2]


def test_the_client_of_the_scoring_server_predicts_also_where_values_are_missing(served: Service) -> None:
    schema = served.get("/v1/models/mortgage")["schema"]["properties"]
    gap = next(name for name, kind in schema.items() if kind.get("type") == ["number", "null"])
    rows = [example(served, "mortgage")] * 2 + [example(served, "mortgage") | {gap: None}]
    port = served.address.rpartition(":")[2]
    version, missing, answers = ask_judge("mlflow", SCORING_SERVER, port, json.dumps(rows))
    expected = post(served, "/v1/models/mortgage:predict", {"instances": rows})["predictions"]
    assert missing == 1
    assert answers[0] == answers[1] == [one["label"] for one in expected]
    assert answers[2] == [list(one["probabilities"].values()) for one in expected]
    assert version == httpx.get(served.address + "/version", trust_env=False).text


def test_the_paths_of_a_platform_are_those_of_its_variables(served: Service) -> None:
    row = example(served, "mortgage")
    answer = post(served, "/predict", {"instances": [row], "parameters": None})
    assert answer["predictions"] == post(served, "/v1/models/mortgage:predict", {"instances": [row]})["predictions"]
    assert httpx.get(served.address + "/is-healthy", trust_env=False).status_code == 200
    assert httpx.head(served.address + "/ping", trust_env=False).status_code == 200
    logged = [line["path"] for line in served.events("Request completed")]
    assert {"/predict", "/is-healthy"} <= set(logged), "the log has the path that was asked for"
