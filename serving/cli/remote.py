"""A running service, asked over HTTP as its clients ask it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import httpx

from serving.cli.errors import Unreachable

SECONDS = 60.0


class RemoteService:
    """A context manager over one connection, so that all is asked of the same worker as long as it lives."""

    def __init__(self, address: str, admin_token: str = "") -> None:
        """`address`: `http://host:port` or `https://host`. With no token there are no figures."""
        self.address = address.rstrip("/")
        self._token = admin_token
        self._client = httpx.Client(
            base_url=self.address,
            timeout=SECONDS,
            limits=httpx.Limits(max_connections=1),
            # what HTTP_PROXY says is meant for other places than a service on this box
            trust_env=False,
        )

    def __enter__(self) -> RemoteService:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()

    def ask(self, method: str, path: str, *, admin: bool = False, **options: Any) -> httpx.Response:
        """Any request. Raises Unreachable."""
        headers = dict(options.pop("headers", {}))
        if admin:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            return self._client.request(method, path, headers=headers, **options)
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.address}{path}: {error or type(error).__name__}") from error

    def get(self, path: str, *, admin: bool = False) -> Any:
        """The JSON that a path answers with status 200. Raises Unreachable."""
        answer = self.ask("GET", path, admin=admin)
        if answer.status_code != 200:
            raise Unreachable(f"{self.address}{path} is answered {answer.status_code}")
        return json_of(answer, path)

    def models(self) -> list[dict[str, Any]]:
        """The live version of every model, with all that it tells of itself. Raises Unreachable."""
        return [self.get(f"/v1/models/{model['name']}") for model in self.get("/v1/models")["models"]]

    @property
    def may_see_figures(self) -> bool:
        return bool(self._token)


def json_of(answer: httpx.Response, path: str) -> Any:
    """The content of an answer. Raises Unreachable when it is not JSON: something else answers there."""
    try:
        return answer.json()
    except ValueError as error:
        raise Unreachable(f"{path} is answered with something that is not JSON") from error
