"""Lets MLflow's command line ask a service: `mlflow deployments predict -t forkserve:URL --name MODEL -I ROWS`.

Context: of `-t http://...` that command makes no request, because it hands a DataFrame to a client that sends its input
as it is. Decision: MLflow finds this module by its entry point `forkserve` of `mlflow.deployments`, and sends through
our client. Consequence: the address after `forkserve:` may be left out for FORKSERVE_URL, and FORKSERVE_API_KEY holds.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException

from serving.client.client import Client
from serving.client.errors import ForkserveError
from serving.client.request import model_path
from serving.client.rows import instances_of

READ_ONLY = "models are deployed with `forkserve add` and `forkserve train`, not through MLflow"


def target_help() -> str:
    """What `mlflow deployments help -t forkserve` shows."""
    return (
        "forkserve:http://HOST:PORT is a service; without an address FORKSERVE_URL names it, and FORKSERVE_API_KEY is "
        f"the key. A deployment is the live version of a model; {READ_ONLY}."
    )


def run_local(*_args: Any, **_options: Any) -> None:
    """Raise MlflowException: a model of MLflow is none of ours."""
    raise MlflowException(READ_ONLY)


class ForkserveDeployments(BaseDeploymentClient):  # type: ignore[misc]  # mlflow has no types where it is not installed
    """The models of a service as deployments. Raises MlflowException."""

    def predict(self, deployment_name: Any = None, inputs: Any = None, endpoint: Any = None) -> Any:
        """What the estimator's `predict` returns for each row of a DataFrame, of lists or of dictionaries."""
        path = f"/endpoints/{quote(deployment_name or endpoint, safe='')}/invocations"
        return PredictionsResponse(self._ask("POST", path, {"inputs": instances_of(inputs)}))

    def explain(self, deployment_name: Any = None, df: Any = None, endpoint: Any = None) -> Any:
        """The SHAP values of rows, as a DataFrame."""
        with Client(self._address) as client:
            try:
                return client.explain(deployment_name or endpoint, df).to_frame()
            except ForkserveError as error:
                raise MlflowException(str(error)) from error

    def list_deployments(self, **_options: Any) -> list[dict[str, Any]]:
        """The live version of each model."""
        found: list[dict[str, Any]] = self._ask("GET", "/v1/models")["models"]
        return found

    def get_deployment(self, name: Any, **_options: Any) -> dict[str, Any]:
        """Everything about the live version of a model."""
        return dict(self._ask("GET", model_path(name)))

    def create_deployment(self, *_args: Any, **_options: Any) -> Any:
        """Raise MlflowException."""
        raise MlflowException(READ_ONLY)

    update_deployment = delete_deployment = create_deployment

    @property
    def _address(self) -> str | None:
        return str(self.target_uri).partition(":")[2] or None

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with Client(self._address) as client:
            try:
                return msgspec.json.decode(client.request(method, path, json=body).content)
            except ForkserveError as error:
                raise MlflowException(str(error)) from error
