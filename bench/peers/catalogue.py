"""The peers, set up as their own documentation recommends, with two workers each.

The plain FastAPI app runs from our own environment. An environment of another holds it and what unpickles the model,
in the versions of requirements.txt (MLServer 1.7 does not start with a newer uvloop):

    python3.12 -m venv /tmp/litserve && /tmp/litserve/bin/pip install litserve scikit-learn==... pandas==... joblib==...
    python3.12 -m venv /tmp/bentoml && /tmp/bentoml/bin/pip install bentoml scikit-learn==... pandas==... joblib==...
    python3.12 -m venv /tmp/mlserver && /tmp/mlserver/bin/pip install mlserver mlserver-sklearn 'uvloop<0.22' ...
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.peers.starting import Instance, Manifest, Peer, Place, free_port

DATATYPES = {"number": "FP64", "integer": "INT64", "boolean": "BOOL", "category": "BYTES"}


def row_itself(instance: Instance, _manifest: Manifest) -> Any:
    """The row is the body."""
    return instance


def row_by_name(instance: Instance, _manifest: Manifest) -> Any:
    """BentoML takes a method's arguments by their names."""
    return {"row": instance}


def inference_request(instance: Instance, manifest: Manifest) -> Any:
    """MLServer takes the V2 inference protocol: a tensor, or a column for each feature of a DataFrame."""
    wanted = "predict" if manifest["task"] == "regression" else "predict_proba"
    if manifest["input"] == "array":
        tensor = {"shape": [1, len(instance)], "datatype": "FP64", "data": list(instance.values())}
        return {"inputs": [{"name": "rows", **tensor}], "outputs": [{"name": wanted}]}
    kinds = {feature["name"]: DATATYPES[feature["kind"]] for feature in manifest["features"]}
    columns = [
        {"name": name, "shape": [1, 1], "datatype": kinds[name], "data": [value]}
        | ({"parameters": {"content_type": "str"}} if kinds[name] == "BYTES" else {})
        for name, value in instance.items()
    ]
    return {"parameters": {"content_type": "pd"}, "inputs": columns, "outputs": [{"name": wanted}]}


def uvicorn(place: Place) -> list[str]:
    """The command of the plain FastAPI app."""
    return _uvicorn(place, "plain_fastapi", 2)


def uvicorn_shap(place: Place) -> list[str]:
    """The command of the one that explains, too."""
    return _uvicorn(place, "plain_shap", 2)


def uvicorn_shap_alone(place: Place) -> list[str]:
    """FastAPI with shap, in one worker."""
    return _uvicorn(place, "plain_shap", 1)


def _uvicorn(place: Place, module: str, workers: int) -> list[str]:
    app = [place.python, "-m", "uvicorn", f"bench.peers.{module}:app", "--port", str(place.port)]
    return [*app, "--workers", str(workers), "--no-access-log", "--log-level", "warning"]


def litserve(place: Place) -> list[str]:
    """The command of the LitServe app."""
    return [place.python, "-m", "bench.peers.litserve_app", str(place.port)]


def bentoml(place: Place) -> list[str]:
    """The command of the BentoML app."""
    app = [place.python, "-m", "bentoml", "serve", "bench.peers.bentoml_app:Model"]
    return [*app, "--host", "127.0.0.1", "--port", str(place.port), "--quiet"]


def mlserver(place: Place) -> list[str]:
    """The command of MLServer; no app, but files of settings."""
    return _mlserver(place, {})


def mlserver_batching(place: Place) -> list[str]:
    """MLServer with adaptive batching: half of the connections' rows for each worker."""
    return _mlserver(place, {"max_batch_size": 32, "max_batch_time": 0.01})


def _mlserver(place: Place, batching: dict[str, Any]) -> list[str]:
    ports = {"http_port": place.port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"debug": False, "parallel_workers": 2, "host": "127.0.0.1"}
    artefact = {"uri": str(place.models / place.name / "1" / "model.joblib")}
    model = {"name": place.name, "implementation": "mlserver_sklearn.SKLearnModel", "parameters": artefact}
    (place.directory / "settings.json").write_text(json.dumps(settings | ports))
    (place.directory / "model-settings.json").write_text(json.dumps(model | batching))
    return [str(Path(place.python).with_name("mlserver")), "start", str(place.directory)]


V2 = "/v2/models/MODEL"

PLAIN = Peer("plain FastAPI", "/predict", "/openapi.json", row_itself, uvicorn)
PLAIN_SHAP = Peer("plain FastAPI, shap", "/explain", "/openapi.json", row_itself, uvicorn_shap)
PLAIN_SHAP_ALONE = Peer("plain FastAPI, shap", "/explain", "/openapi.json", row_itself, uvicorn_shap_alone)
LITSERVE = Peer("LitServe", "/predict", "/health", row_itself, litserve)
BENTOML = Peer("BentoML", "/predict", "/readyz", row_by_name, bentoml)
MLSERVER = Peer("MLServer", f"{V2}/infer", f"{V2}/ready", inference_request, mlserver)
MLSERVER_BATCHING = Peer("MLServer, batching", f"{V2}/infer", f"{V2}/ready", inference_request, mlserver_batching)

BY_OPTION = {"litserve": (LITSERVE,), "bentoml": (BENTOML,), "mlserver": (MLSERVER, MLSERVER_BATCHING)}
"""Which peers run from the interpreter that an option of `bench.predict` names."""
