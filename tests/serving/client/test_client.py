"""Both clients against a real service whose workers are replaced all the time."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import pandas as pd
import pytest

from forkserve import AsyncClient, Client
from harness.entities import import_market, sqlite_source
from harness.processes import eventually
from harness.service import ADMIN_TOKEN, ROOT, Service
from serving.client.answers import Explanations, FeatureImportance, JobStatus, ModelDescription, Prediction, Predictions
from serving.client.errors import AuthenticationError, InvalidInputError, JobFailedError, NotFoundError
from serving.client.events import ServerEvent
from serving.client.progress import Progress

API_KEY = "a-key-only-for-tests"
GUIDE = (ROOT / "GUIDE.md").read_text()


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers, each for 25 requests, that want a key."""
    data = tmp_path_factory.mktemp("data")
    import_market(sqlite_source(data))
    environ = {
        "MODEL_DIR": str(models),
        "DATA_DIR": str(data),
        "MAX_REQUESTS": "25",
        "MAX_REQUESTS_JITTER": "5",
        "MIN_WORKER_SECONDS": "0",
        "API_KEY": API_KEY,
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
    with Service(environ) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.address, API_KEY) as client:
        yield client


def table(client: Client, model: str, count: int) -> pd.DataFrame:
    """Rows of which no two are the same, with an index of their own."""
    described = client.model(model)
    name = next(name for name, value in (described.example or {}).items() if isinstance(value, float))
    frame = pd.DataFrame([described.example] * count, index=[f"row {number}" for number in range(count)])
    frame[name] = [value * (1 + number / 10_000) for number, value in enumerate(frame[name])]
    return frame


def test_a_thousand_requests_while_workers_are_replaced(client: Client, service: Service) -> None:
    rows = table(client, "wine", 1000)
    expected = client.predict("wine", rows)
    before = set(service.workers)
    for position in range(0, 1000, 5):
        few = client.predict("wine", rows.iloc[position : position + 5])
        assert list(few) == expected[position : position + 5]
    assert eventually(lambda: before.isdisjoint(service.workers))


def test_predictions_of_every_form_of_rows_are_the_same(client: Client) -> None:
    rows = table(client, "mortgage", 3)
    predictions = assert_type(client.predict("mortgage", rows), Predictions)
    frame = predictions.to_frame()
    assert list(frame.index) == list(rows.index)
    assert list(frame["label"]) == predictions.labels
    first = assert_type(predictions[0], Prediction)
    assert first.probabilities[str(first.label)] == max(first.probabilities.values())
    ordered = client.model("mortgage").features
    for same in (
        rows.to_dict("records"),
        rows[ordered].to_numpy(),
        rows[reversed(ordered)],
        rows[ordered].values.tolist(),
    ):
        assert client.predict("mortgage", same).raw == predictions.raw
    assert client.predict("mortgage", rows, version="1").raw == predictions.raw
    assert [one.label for one in client.stream_predictions("mortgage", rows)] == predictions.labels
    assert client.predict("diabetes", table(client, "diabetes", 2)).to_frame().columns.tolist() == ["prediction"]


def test_explanations_add_up_in_the_table_too(client: Client) -> None:
    rows = table(client, "wine", 3)
    explanations = assert_type(client.explain("wine", rows, classes="all", space="probability"), Explanations)
    frame = explanations.to_frame()
    assert list(frame.index) == [name for name in rows.index for _ in range(3)]
    features = frame[client.model("wine").features].sum(axis=1)
    assert (features + frame["base_value"] - frame["output"]).abs().max() < 1e-9
    (one, *_) = client.stream_explanations("wine", rows, top=2)
    assert len(one.values) == 3
    assert "(other)" in one.values
    assert one.label == client.predict("wine", rows)[0].label


def test_jobs_from_tables_and_files(client: Client, tmp_path: Path) -> None:
    rows = table(client, "diabetes", 700)
    direct = client.predict("diabetes", rows)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    for given in (rows, tmp_path / "rows.csv", str(tmp_path / "rows.csv")):
        job = assert_type(client.wait(client.submit("diabetes", given)), JobStatus)
        result = client.result(job.id)
        assert isinstance(result, Predictions)
        assert result.values == direct.values
    assert [event.kind for event in client.job_events(job)][-1] == "done"
    assert (
        client.submit("diabetes", rows, idempotency_key="k").id
        == client.submit("diabetes", rows, idempotency_key="k").id
    )
    explained = client.result(client.wait(client.submit("wine", table(client, "wine", 3), operation="explain", top=2)))
    assert "(other)" in explained.to_frame().columns


def test_importance_of_background_rows_and_of_those_of_a_job(client: Client) -> None:
    found = client.importance("wine", top=3)
    assert (found.model, len(found.importance)) == ("wine", 3 + ("(other)" in found.importance))
    rows = table(client, "wine", 20)
    job = client.wait(client.submit("wine", rows, operation="importance"))
    of_rows = client.result(job)
    assert isinstance(of_rows, FeatureImportance)
    assert of_rows.rows == 20
    frame = of_rows.to_frame()
    assert set(frame["feature"]) == set(rows.columns)
    explained = client.explain("wine", rows, classes="all").to_frame()
    label = frame["class"].iloc[0]
    expected = explained[explained["class"] == label][list(rows.columns)].abs().mean()
    shown = frame[frame["class"] == label].set_index("feature")["importance"]
    assert shown.to_dict() == pytest.approx(expected.to_dict())


def test_interactions_of_a_feature_add_up_to_its_value(client: Client) -> None:
    rows = table(client, "breast-cancer", 1)
    (one,) = client.explain("breast-cancer", rows, interactions=True)
    assert {name: sum(pairs.values()) for name, pairs in one.interactions.items()} == pytest.approx(dict(one.values))
    job = client.wait(client.submit("breast-cancer", rows, operation="explain", interactions=True))
    result = client.result(job)
    assert isinstance(result, Explanations)
    (again,) = result
    assert again.interactions == one.interactions


def test_a_parquet_file_and_a_stream_of_arrow_are_jobs(client: Client, tmp_path: Path) -> None:
    rows = table(client, "diabetes", 40)
    write = (
        "import sys, pandas as pd, pyarrow as pa, pyarrow.parquet as pq\n"
        "table = pa.Table.from_pandas(pd.read_csv(sys.argv[1]), preserve_index=False)\n"
        "pq.write_table(table, sys.argv[2])\n"
        "with pa.ipc.new_stream(sys.argv[3], table.schema) as stream: stream.write_table(table)\n"
    )
    rows.to_csv(tmp_path / "rows.csv", index=False)
    files = [str(tmp_path / f"rows.{ending}") for ending in ("csv", "parquet", "arrows")]
    # pyarrow stays out of this process
    subprocess.run([sys.executable, "-c", write, *files], check=True)
    direct = client.predict("diabetes", rows)
    for file in files[1:]:
        result = client.result(client.wait(client.submit("diabetes", file)))
        assert isinstance(result, Predictions)
        assert result.values == direct.values


def test_a_cancelled_job_is_an_error_for_those_who_wait(client: Client) -> None:
    job = client.submit("breast-cancer", table(client, "breast-cancer", 1000), operation="explain")
    client.cancel(job)
    with pytest.raises(JobFailedError, match="cancelled"):
        client.wait(job)


def test_refusals_name_the_request_and_its_values(client: Client, service: Service) -> None:
    with pytest.raises(InvalidInputError, match="instance 1, alcohol") as caught:
        client.predict("wine", table(client, "wine", 3).assign(alcohol=[13.0, None, 13.0]))
    assert [(error.instance, error.feature) for error in caught.value.errors] == [(1, "alcohol")]
    assert caught.value.request_id in service.log()
    with pytest.raises(NotFoundError, match="no model of that name"):
        client.model("no-such")
    with Client(service.address, "wrong") as stranger, pytest.raises(AuthenticationError, match="key is not known"):
        stranger.models()


def test_models_health_and_anything_else(client: Client, service: Service) -> None:
    assert "wine" in {model.name for model in client.models()}
    model = assert_type(client.model("market-return"), ModelDescription)
    assert model.entities
    assert client.health().status == "ok"
    assert client.request("GET", "/health/live").content == b'{"status":"ok"}'
    with Client(service.address, ADMIN_TOKEN) as admin:
        assert admin.request("POST", "/api/admin/models:reload").status == 200


def test_entities_from_records_to_predictions_to_nothing(client: Client) -> None:
    (newest, *_) = records = list(client.records("AAPL"))
    assert len(records) == 250
    values = pd.DataFrame([newest.values] * 2)
    times = pd.to_datetime(["2026-05-01T00:00Z", "2026-05-02T00:00Z"])
    assert client.store_records("ours", values, times=times).stored == 2
    assert client.store_records("ours", values, times=times).present == 2
    assert "ours" in [entity.entity for entity in client.entities()]
    found = client.entity_predictions("ours", models=["market-return"], limit=1, explain=True)
    assert [record.time for record in found.records] == [
        times[1].to_pydatetime().replace(tzinfo=found.records[0].time.tzinfo)
    ]
    assert found.predictions["market-return"].to_frame().index[0] == found.records[0].time
    assert found.explanations["market-return"][0].output == pytest.approx(found.predictions["market-return"][0].value)
    assert client.delete_records("ours", before="2026-05-02").records == 1
    assert client.delete_entity("ours").records == 1
    with pytest.raises(NotFoundError):
        list(client.records("ours"))


def test_outcomes_are_stored_once(client: Client) -> None:
    rows = table(client, "wine", 2)
    predictions = client.predict("wine", rows)
    for stored in (2, 0):
        done = client.store_outcomes("wine", rows, predictions.to_frame()["label"], request_id=predictions.request_id)
        assert (done.stored, done.version) == (stored, "1")


def test_events_of_an_entity_are_followed_from_worker_to_worker(service: Service) -> None:
    async def follow() -> list[ServerEvent]:
        async with AsyncClient(service.address, API_KEY) as client:
            (newest, *_) = [record async for record in client.records("AAPL")]
            found: list[ServerEvent] = []
            opened = asyncio.Event()

            async def listen() -> None:
                opened.set()
                async for event in client.entity_events("followed", after=0):
                    found.append(event)
                    if len(found) == 60:
                        return

            listening = asyncio.create_task(listen())
            await opened.wait()
            for day in range(60):  # more requests than both workers answer
                await client.store_records("followed", [newest.values], times=[f"2026-04-01T00:{day:02}:00Z"])
            async with asyncio.timeout(60):
                await listening
            await client.delete_entity("followed")
            return found

    found = asyncio.run(follow())
    assert [event.kind for event in found] == ["predictions"] * 60
    ids = [int(event.id) for event in found]
    assert ids == sorted(set(ids))
    assert [event.data["records"][0]["time"][14:16] for event in found] == [f"{minute:02}" for minute in range(60)]


def test_an_event_loop_goes_on_meanwhile(service: Service) -> None:
    async def ask() -> None:
        async with AsyncClient(service.address, API_KEY) as client:
            example = (await client.model("wine")).example
            assert example is not None
            answers = await asyncio.gather(*(client.predict("wine", example) for _ in range(50)))
            assert {answer[0].label for answer in answers} == {answers[0][0].label}
            assert_type(answers[0], Predictions)
            job = await client.wait(await client.submit("wine", [example] * 3))
            assert len((await client.result(job)).to_frame()) == 3

    asyncio.run(ask())


def test_the_line_of_a_job_says_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    line = Progress("predict wine", 1000).line("running", 0.25, 10.0, 0.2)
    assert line == "predict wine [#######.......................]  25% running  20 rows/s  0:38 left"
    assert Progress("", 0).line("running", 0.5, 4000.0, 0.5).endswith("running  0.0%/s  1:06:40 left")
    with Progress("predict wine", 0) as progress:
        progress.show("running", 0.5)
    assert capsys.readouterr().err == "", "stderr is no terminal"
    with Progress("predict wine", 0, shown=True) as progress:
        progress.show("queued", 0.0)
    assert capsys.readouterr().err == "\rpredict wine [..............................]   0% queued\x1b[K\n"


def test_the_examples_of_the_guide_run(service: Service, tmp_path: Path) -> None:
    section = GUIDE[GUIDE.index("\n## A client for Python\n") :].split("\n## ")[1]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) >= 5
    (tmp_path / "examples.py").write_text("\n".join(blocks))
    environ = os.environ | {"FORKSERVE_URL": service.address, "FORKSERVE_API_KEY": API_KEY, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples.py"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 5
