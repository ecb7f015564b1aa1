"""Asks a running service from outside: RemoteService one request at a time, `send` as many as it can answer."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import urlsplit

import httptools

from serving.settings import Settings, in_url

if TYPE_CHECKING:
    import httpx

REQUEST_SECONDS = 60.0


class RemoteFault(Exception):
    """The service cannot be reached, or does not answer as it should; in words for the operator."""


class RemoteService:
    """A context manager over one connection: the same worker answers every request for as long as it lives."""

    def __init__(self, address: str, admin_token: str = "", api_key: str = "") -> None:
        """`address`: `http://host:port` or `https://host`. Without a token, metrics cannot be read.

        The token is also the key for everything else if there is no other.
        """
        import httpx  # here, or `forkserve --help` would wait for it

        self.address = address.rstrip("/")
        self._token = admin_token
        self.key = api_key or admin_token
        self._client = httpx.Client(
            base_url=self.address,
            timeout=REQUEST_SECONDS,
            limits=httpx.Limits(max_connections=1),
            # HTTP_PROXY is not meant for a service on this box
            trust_env=False,
        )

    @classmethod
    def of(cls, url: str | None, settings: Settings) -> RemoteService:
        """The service at `url`; by default the one of these settings on this machine."""
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - not listened on
        return cls(url or f"http://{in_url(host)}:{settings.port}", settings.admin_token, settings.api_key)

    def __enter__(self) -> RemoteService:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()

    def ask(self, method: str, path: str, *, admin: bool = False, **options: Any) -> httpx.Response:
        """Send any request. Raises RemoteFault."""
        import httpx

        headers = dict(options.pop("headers", {}))
        key = self._token if admin else self.key
        if key:
            headers.setdefault("Authorization", f"Bearer {key}")
        try:
            return self._client.request(method, path, headers=headers, **options)
        except httpx.HTTPError as error:
            raise RemoteFault(f"{self.address}{path}: {error or type(error).__name__}") from error

    def expect(self, status: int, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request that should be answered with `status`. Raises RemoteFault."""
        answer = self.ask(method, path, **options)
        if answer.status_code != status:
            raise RemoteFault(f"{path} answers {answer.status_code}: {answer.text[:500]}")
        return answer

    def get(self, path: str, *, admin: bool = False) -> Any:
        """The JSON at a path. Raises RemoteFault."""
        return json_of(self.expect(200, "GET", path, admin=admin))

    def models(self) -> list[dict[str, Any]]:
        """The description of each model's live version, with an example of its input. Raises RemoteFault."""
        models = [self.get(f"/v1/models/{model['name']}") for model in self.get("/v1/models")["models"]]
        return [model | {"example": model.get("example") or make_instance(model["schema"])} for model in models]

    def memory(self) -> int | None:
        """PSS of all processes in bytes; None without the admin token. Raises RemoteFault."""
        return int(self.get("/api/admin/metrics", admin=True)["pss_bytes"]) if self._token else None


def make_instance(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An instance that fits a model's JSON Schema, for a service that shows no examples."""
    return {name: _make_value(feature) for name, feature in schema["properties"].items()}


def _make_value(feature: Mapping[str, Any]) -> Any:
    if listed := feature.get("enum") or feature.get("x-known-values"):
        return listed[0]
    kinds = feature["type"]
    match kinds[0] if isinstance(kinds, list) else kinds:
        case "boolean":
            return False
        case "string":
            times = {"date": "2000-01-01", "date-time": "2000-01-01T00:00:00Z"}
            return times.get(feature.get("format", ""), "text"[: feature.get("maxLength")])
        case kind:
            seen = feature.get("x-seen", feature)
            middle = (seen.get("minimum", 0.0) + seen.get("maximum", seen.get("minimum", 0.0))) / 2
            return int(middle) if kind == "integer" else middle


def json_of(answer: httpx.Response) -> Any:
    """The content of a response. Raises RemoteFault if it is not JSON: something else answers there."""
    try:
        return answer.json()
    except ValueError as error:
        raise RemoteFault(f"{answer.url.path} answers something that is not JSON") from error


@dataclass
class Tally:
    """The outcome of requests: statuses and failures by kind, and the seconds that each answer took."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    connections: int = 0

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return sum(self.failures.values())

    @property
    def failed(self) -> int:
        """Requests that were not answered with 200."""
        return self.lost + sum(count for status, count in self.statuses.items() if status != 200)

    @property
    def answered(self) -> int:
        """Requests with an answer of any status."""
        return sum(self.statuses.values())

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the answers arrived."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: asyncio.Future[int] | None = None
        self.usable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def request(self, message: bytes) -> asyncio.Future[int]:
        """Send a request; the future gives the status."""
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        return self._answer

    def data_received(self, data: bytes) -> None:
        if self._parser is not None:
            self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        assert self._answer is not None
        self.usable = self.usable and self._parser.should_keep_alive()
        if not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed without an answer"))


Connect: TypeAlias = Callable[[], Coroutine[Any, Any, tuple[asyncio.BaseTransport, Connection]]]


def post(url: str, body: bytes, key: str = "") -> bytes:
    """The bytes of a POST request with a JSON body."""
    parts = urlsplit(url)
    credentials = f"Authorization: Bearer {key}\r\n" if key else ""
    return (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{credentials}\r\n"
    ).encode() + body


async def send(
    address: str, messages: Iterator[bytes], todo: Iterator[int], tally: Tally, *, connections: int, pause: float = 0.0
) -> None:
    """Send a message for each number in `todo`, and count the outcome in `tally`; nothing is retried.

    `address` is `http://host:port` or `https://host`. A connection that the server has closed, or announced to close,
    is opened again; a request that was sent and not answered counts as lost.
    """
    parts = urlsplit(address)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    connect = partial(
        asyncio.get_running_loop().create_connection,
        Connection,
        parts.hostname or "127.0.0.1",
        parts.port or (443 if tls else 80),
        ssl=tls,
    )
    await asyncio.gather(*(_client(connect, messages, todo, tally, pause) for _ in range(connections)))


async def _client(connect: Connect, messages: Iterator[bytes], todo: Iterator[int], tally: Tally, pause: float) -> None:
    connection: Connection | None = None
    for _ in todo:
        started = perf_counter()
        try:
            if connection is None or not connection.usable:
                if connection is not None:
                    connection.transport.close()
                connection = None
                _, connection = await connect()
                tally.connections += 1
            tally.statuses[await connection.request(next(messages))] += 1
            tally.seconds.append(perf_counter() - started)
        except (OSError, httptools.HttpParserError) as error:
            tally.failures[type(error).__name__] += 1
        except asyncio.CancelledError:
            tally.failures["no answer in time"] += 1
            raise
        if pause:
            await asyncio.sleep(pause)
    if connection is not None:
        connection.transport.close()
