"""Who must be forgotten is forgotten everywhere: no byte is left in DATA_DIR, nor in Redis."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import redis
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from harness.apps import client_of
from harness.servers import RedisServer
from registry.store.add import add_trained
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.cli.parser import parser
from serving.settings import Settings

NOTES = pd.DataFrame({"note": ["broken", "fine", "late", "thanks"] * 5})
KEYS = ("ann", "bob")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    words = make_pipeline(CountVectorizer(), LogisticRegression()).fit(NOTES["note"].tolist(), ["yes", "no"] * 10)
    add_trained(root, "notes", Trained(estimator=words, sample=NOTES), entities=True)
    return root


def secret_of(name: str) -> str:
    return f"the-secret-of-the-key-{name}"


@pytest.fixture(params=["files", "redis"])
def settings(
    request: pytest.FixtureRequest, root: Path, tmp_path: Path, shared_server: RedisServer, raw: redis.Redis
) -> Settings:
    digests = {name: hashlib.sha256(secret_of(name).encode()).hexdigest() for name in KEYS}
    return Settings(
        model_dir=root,
        data_dir=tmp_path / "data",
        log_predictions="all",
        api_keys=" ".join(f"{name}:{digest}:predict,write,read" for name, digest in digests.items()),
        redis_url=shared_server.url if request.param == "redis" else "",
        secret_key=("a-secret-only-for-tests",),
        cache_ttl_seconds=0.001,  # cached answers are kept under hashes, and for as long alone
    )


async def act(client: httpx.AsyncClient, name: str) -> None:
    """Let a key do everything that stores something of what it sends, which has its name in it."""
    headers, note = {"X-API-Key": secret_of(name)}, f"{name}secret is broken"
    entity = f"{name}-entity"
    outcomes = {"instances": [{"note": note}], "outcomes": ["yes"], "entity": entity}
    job = {"operation": "predict", "model": "notes", "instances": [{"note": note}]}
    for method, path, body in (
        ("POST", f"/v1/entities/{entity}/records", {"values": {"note": note}}),
        ("GET", f"/v1/entities/{entity}/predictions?explain=true", None),
        ("POST", "/v1/models/notes:predict", {"instances": [{"note": note}]}),
        ("POST", "/v1/models/notes:explain", {"instances": [{"note": f"{note} again"}]}),
        ("POST", "/v1/models/notes/outcomes", outcomes),
        ("POST", "/v1/jobs", job),
    ):
        answer = await client.request(method, path, json=body, headers=headers)
        assert answer.status_code in (200, 201, 202), (path, answer.text)


def fill(app: Application) -> None:
    async def run() -> None:
        shared, service = app.service.shared, app.service
        shared.book.enter_alone()
        assert shared.recorder is not None
        stop = shared.recorder.start()
        service.batcher.start()
        async with client_of(app) as client:
            for name in KEYS:
                await act(client, name)
        await service.notifier.close()
        await shared.recorder.settle()
        await stop()
        service.batcher.stop()
        for part in (shared.predictions, shared.entities, shared.events, shared.jobs, service.cache):
            await part.close()

    asyncio.run(run())


def values(raw: redis.Redis) -> Iterator[bytes]:
    """Everything that Redis keeps: names, and what is under them, also where `dump` compresses it."""
    client: Any = raw
    for key in client.scan_iter():
        yield key
        yield client.dump(key) or b""
        kind = client.type(key)
        if kind == b"hash":
            yield from (part for pair in client.hgetall(key).items() for part in pair)
        elif kind == b"stream":
            yield repr(client.xrange(key)).encode()


def traces(settings: Settings, raw: redis.Redis, text: str) -> list[str]:
    """Where a text is found."""
    files = [path for path in settings.data_dir.iterdir() if path.is_file()]
    found = [path.name for path in files if text.encode() in path.read_bytes()]
    return found + [value[:80].decode("latin-1") for value in values(raw) if text.encode() in value]


def forkserve(settings: Settings, *words: str) -> int:
    arguments = parser().parse_args([*words])
    status: int = arguments.run(arguments, settings)
    return status


def test_a_key_is_forgotten_and_what_others_have_sent_is_not(
    settings: Settings, raw: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(build(settings, build_alerts(settings)))
    assert {"data.db", "predictions.db"} <= {name.removesuffix("-wal") for name in traces(settings, raw, "annsecret")}
    before = sorted(traces(settings, raw, "bobsecret"))
    capsys.readouterr()
    assert forkserve(settings, "predictions", "delete", "--key", "ann") == 0
    assert capsys.readouterr().out.startswith("deleted 1 records, 1 outcomes,")
    assert traces(settings, raw, "annsecret") == []
    kept = {name.removesuffix("-wal") for name in traces(settings, raw, "bobsecret")}
    assert kept == {name.removesuffix("-wal") for name in before}


def test_an_entity_is_forgotten_with_what_was_predicted_for_it(settings: Settings, raw: redis.Redis) -> None:
    fill(build(settings, build_alerts(settings)))
    assert traces(settings, raw, "ann-entity")
    assert forkserve(settings, "predictions", "delete", "--entity", "ann-entity") == 0
    assert traces(settings, raw, "ann-entity") == []
    assert traces(settings, raw, "bob-entity")


def test_what_is_older_than_a_time_or_of_one_request_is_deleted_alone(
    settings: Settings, raw: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(build(settings, build_alerts(settings)))
    capsys.readouterr()
    assert forkserve(settings, "predictions", "delete", "--before", "2020-01-01") == 0
    assert "0 logged predictions" in capsys.readouterr().out
    assert forkserve(settings, "predictions", "delete", "--request-id", "unknown") == 0
    assert "0 logged predictions" in capsys.readouterr().out
    assert forkserve(settings, "predictions", "delete", "--before", "2100-01-01") == 0
    assert "0 records, 0 outcomes, 0 events, 10 logged predictions, 0 jobs" in capsys.readouterr().out
    assert forkserve(settings, "predictions", "delete") == 1
    assert forkserve(settings, "predictions", "delete", "--key", "a", "--entity", "b") == 1


def read_parquet(file: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    return pd.DataFrame(pq.read_table(file).to_pylist())


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_what_is_exported_is_what_was_logged(
    root: Path, tmp_path: Path, raw: redis.Redis, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    settings = Settings(model_dir=root, data_dir=tmp_path / "data", log_predictions="all")

    async def add() -> list[Any]:
        from serving.stores import build_prediction_store
        from tests.serving.monitoring.predictions.conftest import logged

        store = build_prediction_store(settings)
        rows = [logged(number, model="m" if number < 4 else "other") for number in range(6)]
        await store.add(rows)
        await store.close()
        return rows

    rows = asyncio.run(add())
    file = tmp_path / f"export.{form}"
    assert forkserve(settings, "predictions", "export", "--model", "m", "-o", str(file)) == 0
    table: Any
    if form == "jsonl":
        table = pd.read_json(file, lines=True)
        assert table["row"].tolist() == [row.row for row in rows[:4]]
    else:
        table = pd.read_csv(file, keep_default_na=False) if form == "csv" else read_parquet(file)
        assert [httpx.Response(200, text=text).json() for text in table["row"]] == [row.row for row in rows[:4]]
        assert [httpx.Response(200, text=text).json() for text in table["answer"]] == [row.answer for row in rows[:4]]
    assert table["id"].tolist() == [row.id for row in rows[:4]]
    assert pd.to_datetime(table["time"]).tolist() == [pd.Timestamp(row.time) for row in rows[:4]]
    capsys.readouterr()
    assert forkserve(settings, "predictions", "export", "--last", "1") == 0
    assert rows[-1].id in capsys.readouterr().out
