"""Requests without a key, with a wrong or expired one, or with one of another scope, to every route there is."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from harness.service import ADMIN_TOKEN, Service
from harness.wire import Connection, ask, check_refusal, request
from registry.store.add import add_trained
from registry.training.script import Trained, record_script
from serving.app import Application, build, build_alerts
from serving.errors import InvalidSetting, NotPermitted, RouteNotFound
from serving.http.keys import MAX_FILE_BYTES, Keys
from serving.jobs.job import JobRequest
from serving.settings import Settings
from tests.cases import cases

OPEN = "open"
ANY = "any"

OPERATIONS: Mapping[str, str] = {
    "GET /ping": OPEN,
    "GET /version": OPEN,
    "POST /invocations": "predict",
    "POST /endpoints/{model}/invocations": "predict",
    "POST /serving-endpoints/{model}/invocations": "predict",
    "POST /score": "predict",
    "GET /health": OPEN,
    "GET /health/live": OPEN,
    "GET /health/ready": OPEN,
    "GET /v1/models": ANY,
    "GET /v1/models/{model}": ANY,
    "GET /v1/models/{model}/versions/{version}": ANY,
    "GET /v1/models/{model}/importance": "predict",
    "GET /v1/models/{model}/versions/{version}/importance": "predict",
    "GET /v1/models/{model}/card": ANY,
    "GET /v1/models/{model}/versions/{version}/card": ANY,
    "GET /v1/models/{model}/metadata": ANY,
    "GET /v1/models/{model}/versions/{version}/metadata": ANY,
    "POST /v1/models/{model}:predict": "predict",
    "POST /v1/models/{model}:explain": "predict",
    "POST /v1/models/{model}/versions/{version}:predict": "predict",
    "POST /v1/models/{model}/versions/{version}:explain": "predict",
    "POST /v1/models/line:predict": "predict",
    "POST /v1/models/line:explain": "predict",
    "POST /v1/models/line/versions/1:predict": "predict",
    "POST /v1/models/line/versions/1:explain": "predict",
    "POST /v1/jobs": "predict",
    "GET /v1/jobs/{job_id}": "predict",
    "GET /v1/jobs/{job_id}/result": "predict",
    "GET /v1/jobs/{job_id}/events": "predict",
    "DELETE /v1/jobs/{job_id}": "predict",
    "POST /v1/models/{model}/outcomes": "write",
    "GET /v1/models/{model}/drift": "read",
    "GET /v1/models/{model}/canary": "read",
    "GET /v1/models/{model}/shadow": "read",
    "GET /v1/models/{model}/quality": "read",
    "POST /v1/entities/{entity}/records": "write",
    "GET /v1/entities": "read",
    "GET /v1/entities/{entity}/records": "read",
    "DELETE /v1/entities/{entity}": "write",
    "DELETE /v1/entities/{entity}/records": "write",
    "GET /v1/entities/{entity}/predictions": "read",
    "GET /v1/entities/{entity}/events": "read",
    "GET /v1/predictions": "read",
    "GET /v1/predictions/{request_id}": ANY,
    "POST /v1/predictions/{request_id}:explain": ANY,
    "DELETE /v1/predictions/{request_id}": "write",
    "GET /v2": ANY,
    "GET /v2/health/live": OPEN,
    "GET /v2/health/ready": OPEN,
    "POST /v2/repository/index": ANY,
    "GET /v2/models/stats": ANY,
    **{
        f"GET /v2/models/{{model}}{version}{rest}": ANY
        for version in ("", "/versions/{version}")
        for rest in ("", "/ready", "/config", "/stats")
    },
    "POST /v2/models/{model}/infer": "predict",
    "POST /v2/models/{model}/versions/{version}/infer": "predict",
    "GET /metrics": "admin",
    "GET /api/admin/metrics": "admin",
    "GET /api/admin/events": "admin",
    "POST /api/admin/models:reload": "admin",
    "POST /api/admin/models/{model}:rollback": "admin",
    "POST /api/admin/models/{model}/versions/{version}:promote": "admin",
    "POST /api/admin/models/{model}/versions/{version}:canary": "admin",
    "POST /api/admin/models/{model}/versions/{version}:shadow": "admin",
    "POST /api/admin/models/{model}:train": "admin",
    "POST /api/admin/workers/{pid}:drain": "admin",
    "POST /api/admin/schedules/{name}:pause": "admin",
    "POST /api/admin/schedules/{name}:resume": "admin",
    "GET /api/admin/log": "admin",
}
"""The scope of every operation. A new route needs a line here, and a scope in `serving/http/keys.py`."""

SCOPES = ("predict", "write", "read", "admin")
SECRETS = {scope: f"the-secret-of-the-key-{scope}" for scope in SCOPES}
EXPIRED = "a-key-of-all-scopes-that-has-expired"
NARROW = "a-key-for-a-model-that-is-another"
OTHER = "a-key-of-somebody-else"
GREEDY = "a-key-that-wants-everything"

MAX_WAITING = 3
"""Jobs that one key may have waiting."""


def entry(name: str, secret: str, *rest: str) -> str:
    return ":".join((name, hashlib.sha256(secret.encode()).hexdigest(), *rest))


ENTRIES = " ".join(
    [
        *(entry(f"only-{scope}", secret, scope) for scope, secret in SECRETS.items()),
        entry("old", EXPIRED, ",".join(SCOPES), "", "", "2020-01-01"),
        entry("narrow", NARROW, "predict,write,read", "", "other"),
        entry("other", OTHER, "predict"),
        entry("greedy", GREEDY, "predict"),
    ]
)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one small model."""
    root = tmp_path_factory.mktemp("line") / "models"
    sample = pd.DataFrame({"value": np.linspace(0.0, 1.0, 20)})
    trained = Trained(estimator=LinearRegression().fit(sample, sample["value"]), sample=sample)
    add_trained(root, "line", trained, entities=True, training=record_script(b"def train(data): ..."))
    return root


@pytest.fixture(scope="module")
def app(line: Path) -> Application:
    settings = Settings(
        model_dir=line, data_dir=line.parent / "data", api_keys=ENTRIES, job_max_queued_per_key=MAX_WAITING
    )
    return build(settings, build_alerts(settings))


Response = tuple[int, dict[str, str], bytes]


def send(
    app: Application, operation: str, headers: Mapping[str, str], body: bytes = b"{}", address: str = "127.0.0.1"
) -> Response:
    """The answer of the app to an operation; a client of a stream leaves as soon as it has sent the body."""
    method, target = operation.split()
    path, _, query = target.partition("?")
    path = re.sub(r"{\w+}", "line", path)
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"content-type", b"application/json"), *raw],
        "client": (address, 1),
    }
    sent: list[dict[str, Any]] = []
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        part = next(parts, None)
        if part is None and (method, path) == ("POST", "/v1/jobs"):  # it is noticed who leaves while rows are read
            await asyncio.Event().wait()
        return part or {"type": "http.disconnect"}

    async def answer(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, answer))
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(message["body"] for message in sent[1:])


def detail_of(content: bytes) -> str:
    """What a refusal says, in whichever form."""
    refusal = msgspec.json.decode(content)
    detail: str = refusal["error"] if "error" in refusal else refusal["detail"]
    return detail


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def documented(app: Application) -> dict[str, dict[str, Any]]:
    _, _, content = send(app, "GET /openapi.json", bearer(SECRETS["admin"]))
    paths = msgspec.json.decode(content)["paths"]
    return {f"{method.upper()} {path}": one for path, item in paths.items() for method, one in item.items()}


def test_every_operation_has_a_line_in_the_table(app: Application) -> None:
    assert documented(app).keys() == OPERATIONS.keys()


def test_without_a_valid_key_nothing_is_answered(app: Application) -> None:
    expired = bearer(EXPIRED)
    wrong: list[dict[str, str]] = [
        {},
        bearer("nobody-has-this-key"),
        bearer(""),
        {"Authorization": SECRETS["admin"]},
        {"Authorization": f"Basic {SECRETS['admin']}"},
        {"X-API-Key": "x" * 100_000},
        {"X-API-Key": "\xff\x00"},
        {"X-API-Key": hashlib.sha256(SECRETS["admin"].encode()).hexdigest()},
        {"Cookie": f"key={SECRETS['admin']}"},
        expired,
    ]
    with cases() as case:
        for operation, scope in OPERATIONS.items():
            for headers in wrong:
                with case((operation, str(headers)[:80])):
                    status, answer, content = send(app, operation, headers)
                    if scope == OPEN:
                        assert status == 200
                        continue
                    assert status == 401
                    assert answer["www-authenticate"].startswith("Bearer")
                    detail = detail_of(content)
                    assert "`Authorization: Bearer KEY` or `X-API-Key: KEY`" in detail
                    assert ("expired" in detail) == (headers is expired)


def test_a_key_of_another_scope_is_told_which_it_lacks(app: Application) -> None:
    with cases() as case:
        for operation, scope in OPERATIONS.items():
            for own, secret in SECRETS.items():
                with case((operation, own)):
                    status, answer, content = send(app, operation, {"X-API-Key": secret})
                    if scope in (OPEN, ANY, own) or own == "admin":
                        assert status not in (401, 403)
                        continue
                    assert status == 403
                    assert f"lacks the scope {scope}" in detail_of(content)
                    assert f'scope="{scope}"' in answer["www-authenticate"]


def test_a_key_of_one_model_cannot_tell_whether_there_are_others(app: Application) -> None:
    with cases() as case:
        for operation, scope in OPERATIONS.items():
            names_a_model = re.search(r"/(models|endpoints|serving-endpoints)/(?!stats$)", operation)
            if names_a_model and scope in ("predict", "write", ANY):
                for path in (operation, operation.replace("line", "nothing").replace("{model}", "nothing")):
                    with case(path):
                        status, _, content = send(app, path, bearer(NARROW))
                        assert status == 403
                        assert detail_of(content) == "this key may not use that model"
    assert send(app, "GET /v1/models/other", bearer(NARROW))[0] == 404


def test_a_route_that_nobody_gave_a_scope_is_there_for_the_admin_only(app: Application) -> None:
    for operation in ("GET /v1/anything", "POST /v9/models/line/infer", "GET /v1/models//x/../../metrics/"):
        assert send(app, operation, {})[0] == 401
        assert send(app, operation, bearer(SECRETS["predict"]))[0] == 404
    for scope, secret in SECRETS.items():  # the same, as if there were a route
        sent = {"path": "/v1/anything", "method": "GET", "headers": [(b"x-api-key", secret.encode())]}
        if scope == "admin":
            assert app.keys.check(sent).name == "only-admin"
            continue
        with pytest.raises(RouteNotFound):
            app.keys.check(sent)


def spelled_otherwise(path: str) -> Iterator[str]:
    """Paths that a proxy may take for this one, or for another, as they come over the wire."""
    yield "/" + path
    yield "//localhost" + path
    yield "/." + path
    yield "/x/.." + path
    yield path + "/"
    yield path + "//"
    yield path + "%20"
    yield path + "%00"
    yield path + ";x=1"
    yield path + "#/health"
    yield path + "?/health"
    yield path.upper()
    yield path.replace("/", "/%2e/", 1)
    yield path.replace("/", "%2f").replace("%2f", "/", 1)
    yield path.replace("/", "\\")
    yield "".join(letter if letter in "/{}" else f"%{ord(letter):02x}" for letter in path)
    yield "/health/live/.." + path
    yield "/health/%2e%2e" + path
    yield "/docs/.." + path
    yield "http://localhost" + path


def test_a_path_that_is_spelled_otherwise_opens_nothing(guarded: Service) -> None:
    """Whatever the path is taken for, nothing is done for a client without a key."""
    with cases() as case:
        for operation, scope in OPERATIONS.items():
            method, path = re.sub(r"{\w+}", "line", operation).split()
            for spelled in spelled_otherwise(path) if scope != OPEN else ():
                for asked in (method, "HEAD", "OPTIONS"):
                    with case((asked, spelled)), Connection(guarded) as connection:
                        connection.send(request(spelled, b"{}", asked))
                        answer = connection.answer(to_head=asked == "HEAD")
                        assert answer is not None
                        assert answer.status in (400, 401, 404, 405)
                        assert b"line" not in answer.body


def test_of_two_keys_in_a_request_none_counts_by_accident(app: Application) -> None:
    good, bad, narrow = SECRETS["read"], "nobody-has-this-key", SECRETS["write"]
    operation = "GET /v1/entities"
    for headers, status in (
        ({"Authorization": f"Bearer {bad}", "X-API-Key": good}, 401),
        ({"Authorization": f"Bearer {good}", "X-API-Key": bad}, 200),
        ({"Authorization": f"Bearer {narrow}", "X-API-Key": good}, 403),
        ({"Authorization": f"bearer   {good} "}, 200),
        ({"Authorization": f"Bearer {good}, Bearer {bad}"}, 401),
        ({"Authorization": f"Bearer\t{good}"}, 401),
        ({"Authorization": "Basic Og==", "X-API-Key": good}, 200),
        ({"X-API-Key": good, "X-Admin-Token": bad}, 200),
    ):
        assert send(app, operation, headers)[0] == status, headers


def test_the_document_says_which_key_an_operation_takes(app: Application, line: Path) -> None:
    with cases() as case:
        for operation, said in documented(app).items():
            with case(operation):
                scope = OPERATIONS[operation]
                if scope == OPEN:
                    assert said["security"] == []
                    continue
                scopes = [] if scope == ANY else [scope]
                assert said["security"] == [{"bearer": scopes}, {"header": scopes}]
                assert {"401", "403"} <= said["responses"].keys()
    settings = Settings(model_dir=line, data_dir=line.parent / "data", admin_token=ADMIN_TOKEN)
    open_app = build(settings, build_alerts(settings))
    for operation, said in documented(open_app).items():
        assert ({} in said["security"]) == (OPERATIONS[operation] not in (OPEN, "admin"))
        status, _, _ = send(open_app, operation, {})
        assert (status == 401) == (OPERATIONS[operation] == "admin")


JOB = b'{"operation": "predict", "model": "line", "instances": [{"value": 0.5}]}'


def without_id(response: Response) -> Any:
    """The answer, but for what is different in each."""
    status, headers, content = response
    return status, headers | {"x-request-id": ""}, msgspec.json.decode(content) | {"request_id": ""}


def submit(app: Application, secret: str, **headers: str) -> dict[str, Any]:
    status, _, content = send(app, "POST /v1/jobs", bearer(secret) | headers, JOB)
    assert status == 202
    job: dict[str, Any] = msgspec.json.decode(content)
    return job


PARTS = (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", ""))


def test_jobs_belong_to_the_key_that_made_them(app: Application) -> None:
    mine, repeat = SECRETS["predict"], {"Idempotency-Key": "order-1"}
    job = submit(app, mine, **repeat)
    assert submit(app, mine, **repeat)["id"] == job["id"], "the same request of the same key"
    assert submit(app, mine)["id"] == job["id"], "equal work of the same key is done once"
    theirs = submit(app, OTHER, **repeat)
    assert theirs["id"] != job["id"]
    assert submit(app, SECRETS["admin"])["id"] not in (job["id"], theirs["id"])
    for operation in (f"{method} /v1/jobs/{job['id']}{rest}" for method, rest in PARTS):
        unknown = send(app, operation.replace(job["id"], "x" * 24), bearer(OTHER), b"")
        refused = send(app, operation, bearer(OTHER), b"")
        assert refused[0] == unknown[0] == 404
        assert [detail_of(content) for _, _, content in (refused, unknown)] == [
            "there is no such job, or it has been deleted"
        ] * 2
    assert msgspec.json.decode(send(app, f"GET /v1/jobs/{job['id']}", bearer(mine))[2])["state"] == "queued"
    assert send(app, f"GET /v1/jobs/{job['id']}", bearer(SECRETS["admin"]))[0] == 200, "the admin sees all"
    assert send(app, f"DELETE /v1/jobs/{job['id']}", bearer(mine))[0] == 200


def test_jobs_of_schedules_and_trainings_are_there_for_the_admin_only(app: Application) -> None:
    """Both are jobs of no client, or of the admin's, although every job is below a path of scope `predict`."""
    status, _, content = send(app, "POST /api/admin/models/line:train", bearer(SECRETS["admin"]))
    assert status == 202
    training = msgspec.json.decode(content)["id"]
    scheduled = JobRequest(operation="reload", inputs=[b""], unique_key="schedule nightly")
    for job_id in (training, asyncio.run(app.service.shared.jobs.submit(scheduled)).id):
        for method, rest in PARTS:
            operation = f"{method} /v1/jobs/{job_id}{rest}"
            for secret in (SECRETS["predict"], OTHER, NARROW):
                refused = send(app, operation, bearer(secret), b"")
                unknown = send(app, operation.replace(job_id, "x" * 24), bearer(secret), b"")
                assert without_id(refused) == without_id(unknown)
                assert refused[0] == 404
        assert send(app, f"GET /v1/jobs/{job_id}", bearer(SECRETS["admin"]))[0] == 200
        assert send(app, f"DELETE /v1/jobs/{job_id}", bearer(SECRETS["admin"]))[0] == 200


def test_models_are_read_and_no_other_method_says_more_than_that(app: Application) -> None:
    for path in ("/v1/models", "/v1/models/line", "/v1/models/line/versions/1"):
        for secret in SECRETS.values():
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                status, answer, _ = send(app, f"{method} {path}", bearer(secret))
                assert (status, answer["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_one_key_cannot_fill_the_queue(app: Application) -> None:
    answers = [
        send(app, "POST /v1/jobs", bearer(GREEDY), JOB.replace(b"0.5", b"0.%d" % number))
        for number in range(1, MAX_WAITING + 2)
    ]
    assert [status for status, _, _ in answers] == [202] * MAX_WAITING + [429]
    _, answer, content = answers[-1]
    assert answer["retry-after"] == "10"
    assert "of this client" in detail_of(content)
    submit(app, OTHER, **{"Idempotency-Key": "still-room"})


def test_without_keys_one_address_cannot_fill_the_queue(line: Path, tmp_path: Path) -> None:
    settings = Settings(model_dir=line, data_dir=tmp_path, job_max_queued_per_key=2, job_max_queued_bytes_per_key=64)
    app = build(settings, build_alerts(settings))

    def ask_for(rows: int, start: float, address: str) -> Response:
        instances = [{"value": start + number} for number in range(rows)]
        job = {"operation": "predict", "model": "line", "instances": instances}
        return send(app, "POST /v1/jobs", {}, msgspec.json.encode(job), address)

    status, _, content = ask_for(9, 0.0, "10.0.0.1")
    assert status == 413, "9 numbers of 8 bytes are more than it may ever have"
    assert "a job may take 64 bytes" in detail_of(content)
    assert ask_for(6, 1.0, "10.0.0.1")[0] == 202
    status, answer, content = ask_for(3, 2.0, "10.0.0.1")
    assert (status, answer["retry-after"]) == (429, "10")
    assert "the rows of this client's waiting jobs" in detail_of(content)
    assert ask_for(1, 3.0, "10.0.0.1")[0] == 202
    status, _, content = ask_for(1, 4.0, "10.0.0.1")
    assert status == 429
    assert "too many jobs of this client" in detail_of(content)
    assert ask_for(8, 5.0, "10.0.0.2")[0] == 202


def test_a_key_of_one_model_sees_and_asks_no_other(app: Application) -> None:
    assert msgspec.json.decode(send(app, "GET /v1/models", bearer(NARROW))[2])["models"] == []
    assert msgspec.json.decode(send(app, "GET /v2/models/stats", bearer(NARROW))[2]) == {"model_stats": []}
    assert msgspec.json.decode(send(app, "POST /v2/repository/index", bearer(NARROW))[2]) == []
    for model in ("line", "nothing"):
        assert send(app, "POST /v1/jobs", bearer(NARROW), JOB.replace(b"line", model.encode()))[0] == 403
        assert send(app, f"GET /v1/entities/e/predictions?models=other,{model}", bearer(NARROW))[0] == 403
    assert send(app, "GET /v1/entities/e/events", bearer(NARROW))[0] == 403


@pytest.fixture(scope="module")
def guarded(line: Path) -> Iterator[Service]:
    """A service of two workers whose keys are in a file."""
    file = line.parent / "keys.txt"
    file.write_text(f"# keys\n{entry('first', 'the-first-of-two-keys', 'predict')}\n")
    environ = {
        "MODEL_DIR": str(line),
        "API_KEYS_FILE": str(file),
        "API_KEYS": entry("slow", "slow-key", "read", "3/day"),
    }
    with Service(environ | {"API_KEY": "the-simplest-key-there-is", "ADMIN_TOKEN": ADMIN_TOKEN}) as service:
        yield service


def listing(secret: str) -> bytes:
    return request("/v1/models", method="GET", authorization=f"Bearer {secret}")


def test_a_rate_counts_all_requests_of_a_key_over_all_workers(guarded: Service) -> None:
    answers = [ask(guarded, listing("slow-key")) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=86400'
    assert "with this key" in check_refusal(answers[4], 429)["detail"]
    assert ask(guarded, listing("the-simplest-key-there-is")).status == 200


def test_keys_are_exchanged_while_the_service_runs_and_a_broken_file_changes_nothing(
    guarded: Service, line: Path
) -> None:
    file = line.parent / "keys.txt"

    def wait_for(event: str) -> None:
        """Ask until both workers have looked at the file; each looks once a second."""
        while len(guarded.events(event)) < 2:
            assert ask(guarded, listing(ADMIN_TOKEN)).status == 200

    def replace(text: str) -> None:
        new = file.with_suffix(".new")
        new.write_text(text)
        new.replace(file)

    assert ask(guarded, listing("the-first-of-two-keys")).status == 200
    replace("first:nonsense:predict\n")
    wait_for("Keys not read again")
    assert ask(guarded, listing("the-first-of-two-keys")).status == 200
    replace(entry("first", "the-second-of-two-keys", "predict"))
    wait_for("Keys read again")
    check_refusal(ask(guarded, listing("the-first-of-two-keys")), 401)
    assert ask(guarded, listing("the-second-of-two-keys")).status == 200


def test_half_a_file_of_keys_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its end, an entry may be a key for more."""
    monkeypatch.setattr("serving.http.keys.WATCH_SECONDS", 0.0)
    file = tmp_path / "keys"
    whole = entry("narrow", NARROW, "predict", "", "other")
    file.write_text(whole)
    keys = Keys((), file)
    scope = {"path": "/v1/models/line:predict", "method": "POST", "headers": [(b"x-api-key", NARROW.encode())]}

    def is_refused() -> bool:
        try:
            keys.check(scope)
        except NotPermitted:
            return True
        return False

    assert is_refused()
    for text in (whole.removesuffix(":other"), whole + "\n", whole.removesuffix(":other"), whole):
        file.write_text(text)
        assert is_refused(), "read while it was written"
    file.write_text(whole.removesuffix(":other"))
    assert [is_refused() for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    "content",
    [b"", b"# nothing\n", b"\xff\xfe" + b"a" * 100, b"a" * (MAX_FILE_BYTES + 1), b"first:12:predict", None, "pipe"],
    ids=["empty", "comments", "not UTF-8", "too large", "broken", "gone", "a pipe"],
)
def test_a_file_of_keys_that_cannot_be_used_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str | None
) -> None:
    monkeypatch.setattr("serving.http.keys.WATCH_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(entry("first", OTHER, "predict"))
    keys = Keys((), file)
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        os.mkfifo(file)
    scope = {"path": "/v1/jobs", "method": "POST", "headers": [(b"x-api-key", OTHER.encode())]}
    assert [keys.check(scope).name for _ in range(3)] == ["first"] * 3
    if content is not None:
        with pytest.raises(InvalidSetting, match="API_KEYS_FILE"):
            Keys((), file)


def test_the_log_names_the_key_and_never_shows_it(guarded: Service) -> None:
    assert ask(guarded, listing("the-simplest-key-there-is")).status == 200
    check_refusal(ask(guarded, listing("not-a-key-of-anybody")), 401)
    lines = guarded.events("Request completed")
    assert {"default", None} <= {line.get("key") for line in lines}
    assert not any(secret in guarded.log() for secret in ("the-simplest-key-there-is", "not-a-key-of-anybody"))


def test_requests_are_counted_by_the_name_of_their_key(guarded: Service) -> None:
    def count() -> dict[str, float]:
        text = ask(guarded, request("/metrics", method="GET", x_admin_token=ADMIN_TOKEN)).body.decode()
        found = re.findall(r'forkserve_key_requests_total{key="([^"]+)"} (\S+)', text)
        return {name: float(number) for name, number in found}

    assert count().keys() == {"admin", "default", "first", "slow", "other"}
    before = count()["default"]
    assert ask(guarded, listing("the-simplest-key-there-is")).status == 200
    while count()["default"] == before:
        pass  # a snapshot lasts half a second
