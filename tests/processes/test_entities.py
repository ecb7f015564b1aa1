"""Entities on the real service: records in, predictions of all models out, and what those who follow are told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from examples.market import FEATURES, market_records
from harness import wire
from harness.admin import admin_figures
from harness.entities import MARKET, ask, columns, import_market, post, send_outcomes, send_record, sqlite_source
from harness.jobs import call
from harness.service import ADMIN_TOKEN, Service
from harness.sse import Frame, Stream
from harness.supabase import SupabaseServer
from serving.entities.supabase import SupabaseEntityStore

SQLITE_ALONE = pytest.mark.parametrize("entities", ["sqlite"], indirect=True)


@pytest.fixture(scope="module", params=["sqlite", "supabase"])
def entities(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Two workers over the market records of the demo, wherever they are kept."""
    directory = tmp_path_factory.mktemp("entities")
    environ = {
        "MODEL_DIR": str(models),
        "DATA_DIR": str(directory),
        "MAX_REQUESTS": "0",
        "MAX_LIMIT_CHECKINS": "4",
        "MAX_INSTANCES": "20",
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
    if request.param == "supabase":
        server: SupabaseServer = request.getfixturevalue("shared_supabase")
        server.empty()
        import_market(SupabaseEntityStore(server.url, server.key, keep_records=1000, keep_outcomes=1000))
        environ |= {"SUPABASE_URL": server.url, "SUPABASE_SERVICE_KEY": server.key}
    else:
        import_market(sqlite_source(directory))
    with Service(environ) as service:
        yield service


@pytest.fixture
def entity(request: pytest.FixtureRequest) -> str:
    """One that no other test knows."""
    return f"test-{abs(hash(request.node.name)):x}"


def test_all_models_answer_the_newest_records_as_each_answers_them_alone(entities: Service) -> None:
    answer = ask(entities, "AAPL")
    assert answer.status == 200, answer.body
    newest = [values for share, _, values in market_records() if share == "AAPL"][: -4 - 1 : -1]
    assert [record["time"] for record in answer.json["records"]] == sorted(
        (record["time"] for record in answer.json["records"]), reverse=True
    )
    assert [one["model"] for one in answer.json["models"]] == MARKET
    for one in answer.json["models"]:
        instances = [{name: values[name] for name in FEATURES} for values in newest]
        alone = post(entities, f"/v1/models/{one['model']}:predict", {"instances": instances})
        assert one["predictions"] == alone.json["predictions"]
        assert one["version"] == "1"


def test_never_more_records_than_may(entities: Service) -> None:
    assert len(ask(entities, "IBM", "?limit=1").json["records"]) == 1
    for query in ("", "?limit=4", "?limit=5", "?limit=999999999"):
        answer = ask(entities, "IBM", query).json
        assert len(answer["records"]) == 4
        assert all(len(one["predictions"]) == 4 for one in answer["models"])


def test_what_is_asked_again_comes_from_the_cache(entities: Service) -> None:
    sources = [ask(entities, "MSFT").headers["X-Cache"] for _ in range(8)]
    assert sources.count("hit-memory") >= 6  # of two workers, each has computed it once at most


def test_only_the_models_that_are_named_answer(entities: Service) -> None:
    answer = ask(entities, "FB", "?models=market-range,market-direction,market-range&limit=1").json
    assert [one["model"] for one in answer["models"]] == ["market-range", "market-direction"]


def test_explanations_come_beside_the_predictions_and_add_up(entities: Service) -> None:
    answer = ask(entities, "GOOG", "?explain=true&limit=2").json
    assert len(answer["models"]) == 5
    for one in answer["models"]:
        assert len(one["explanations"]) == len(one["predictions"]) == 2
        for explanation in one["explanations"]:
            total = explanation["base_value"] + sum(explanation["values"].values())
            assert total == pytest.approx(explanation["output"], abs=1e-9)
    assert "explanations" not in ask(entities, "GOOG", "?explain=false").json["models"][0]


def test_a_record_that_is_sent_twice_is_stored_once(entities: Service, entity: str) -> None:
    sent = {"values": columns(1), "time": "2024-05-01T12:00:00+02:00", "id": "mine"}
    first, second = send_record(entities, entity, **sent), send_record(entities, entity, **sent)
    assert (first.status, first.json["stored"], first.json["ids"]) == (201, 1, ["mine"])
    assert (second.status, second.json["stored"]) == (200, 0)
    by_content = [send_record(entities, entity, values=columns(2), time="2024-05-02").json for _ in range(2)]
    assert [one["stored"] for one in by_content] == [1, 0]
    answer = ask(entities, entity).json
    assert [record["time"] for record in answer["records"]] == ["2024-05-02T00:00:00Z", "2024-05-01T10:00:00Z"]


def test_several_records_come_at_once(entities: Service, entity: str) -> None:
    records = [{"values": columns(number), "time": f"2024-05-0{number}"} for number in (1, 3, 2)]
    assert post(entities, f"/v1/entities/{entity}/records", {"records": records}).json["stored"] == 3
    times = [record["time"][:10] for record in ask(entities, entity).json["records"]]
    assert times == ["2024-05-03", "2024-05-02", "2024-05-01"]


def test_a_column_that_a_model_lacks_is_named(entities: Service, entity: str) -> None:
    incomplete = {name: value for name, value in columns(1).items() if name != "range_5d"}
    assert send_record(entities, entity, values=incomplete | {"more": "than they need"}).status == 201
    answer = ask(entities, entity, "?models=market-range")
    assert answer.status == 422
    assert answer.json["errors"] == [
        {"instance": 0, "feature": "range_5d", "reason": "is missing (model market-range)"}
    ]


def test_the_deadline_may_be_shortened_for_entities_too(entities: Service, entity: str) -> None:
    send_record(entities, entity, values=columns(100), time="2024-05-01")  # nobody else asks about that day
    assert ask(entities, entity, X_Request_Timeout="0.0000001").status == 504
    assert ask(entities, entity, X_Request_Timeout="30").status == 200
    for given in ("", "0", "soon"):
        refused = ask(entities, entity, X_Request_Timeout=given)
        assert (refused.status, refused.json["detail"]) == (400, "X-Request-Timeout is a number of seconds")


def test_an_entity_without_records_is_not_found(entities: Service) -> None:
    answer = ask(entities, "nobody")
    assert (answer.status, answer.json["detail"]) == (404, "that entity has no records")


async def events(stream: Stream) -> AsyncIterator[Frame]:
    async for frame in stream:
        if "event" in frame:
            yield frame


@pytest.mark.anyio
async def test_who_follows_an_entity_hears_of_each_record_and_resumes(entities: Service, entity: str) -> None:
    path = f"/v1/entities/{entity}/events"
    async with Stream(entities.address, path) as stream:
        frames = aiter(stream)
        position = (await anext(frames))["id"]
        for number in (1, 2):
            assert send_record(entities, entity, values=columns(number), id=str(number)).status == 201
        heard = [await anext(frames) for _ in range(2)]
    assert [frame["event"] for frame in heard] == ["predictions", "predictions"]
    first = json.loads(heard[0]["data"])
    assert first["entity"] == entity
    assert [record["id"] for record in first["records"]] in (["1"], ["2"])
    assert [one["model"] for one in first["models"]] == MARKET
    for last, expected in ((position, heard), (heard[0]["id"], heard[1:])):
        async with Stream(entities.address, path, headers={"last-event-id": last}) as again:
            resumed = events(again)
            assert [await anext(resumed) for _ in expected] == expected


@pytest.mark.anyio
async def test_who_follows_hears_why_a_record_is_not_predicted(entities: Service, entity: str) -> None:
    async with Stream(entities.address, f"/v1/entities/{entity}/events") as stream:
        frames = aiter(stream)
        await anext(frames)
        send_record(entities, entity, values={"strange": 1})
        frame = await anext(frames)
    assert frame["event"] == "refused"
    assert json.loads(frame["data"])["errors"][0]["reason"] == "is missing (model market-direction)"


BAD_RECORDS: dict[bytes, int] = {
    b"": 400,
    b"{": 400,
    b"[]": 400,
    b"null": 400,
    b'{"values": {"x": NaN}}': 400,
    b'{"values": {"x": 1e400}}': 400,
    b'{"values": {"x": %s}}' % (b"9" * 5000): 400,
    b'{"values": {"x": "\\ud800"}}': 400,
    b'{"values": {"x": "\xff"}}': 400,
    b'{"values": {"x": %s}}' % (b"[" * 100_000): 400,
    b"{}": 422,
    b'{"values": {}}': 422,
    b'{"values": []}': 422,
    b'{"values": {"x": [1]}}': 422,
    b'{"values": {"x": {"y": 1}}}': 422,
    b'{"values": {"x": "\\u0000"}}': 422,
    b'{"values": {"": 1}}': 422,
    b'{"values": {"a\\nb": 1}}': 422,
    b'{"values": {"%s": 1}}' % (b"x" * 65): 422,
    b'{"values": {"x": "%s"}}' % (b"y" * 10_001): 422,
    b'{"values": {%s}}' % b",".join(b'"c%d": 1' % number for number in range(201)): 422,
    b'{"values": {%s}}' % b",".join(b'"c%d": "%s"' % (number, b"z" * 9_000) for number in range(8)): 422,
    b'{"values": {"x": 1}, "id": "../../etc"}': 422,
    b'{"values": {"x": 1}, "id": ""}': 422,
    b'{"values": {"x": 1}, "id": 1}': 422,
    b'{"values": {"x": 1}, "time": "yesterday"}': 422,
    b'{"values": {"x": 1}, "time": "0001-01-01T00:00:00+14:00"}': 422,
    b'{"values": {"x": 1}, "time": 1700000000}': 422,
    b'{"values": {"x": 1}, "unknown": 1}': 422,
    b'{"records": []}': 422,
    b'{"records": [%s]}' % b",".join([b'"x"'] * 100_000): 422,
    b'{"values": {"x": 1}, "%s": 1}' % (b"y" * 100_000): 422,
    b'{"records": [{"values": {"x": 1}}], "values": {"x": 1}}': 422,
    b'{"records": [{"values": {"x": 1}}, {"values": {"x": []}}]}': 422,
    b'{"records": [%s]}' % b",".join([b'{"values": {"x": 1}}'] * 21): 413,
}


@SQLITE_ALONE
@pytest.mark.parametrize("body", BAD_RECORDS, ids=lambda body: str(body[:40]))
def test_a_record_that_cannot_be_is_refused(entities: Service, body: bytes) -> None:
    answer = call(entities, "POST", "/v1/entities/bad/records", body, Content_Type="application/json")
    assert answer.status == BAD_RECORDS[body], answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(answer.body) < 1000
    assert ask(entities, "bad").status == 404


@SQLITE_ALONE
def test_bodies_of_other_kinds_and_sizes_are_refused(entities: Service) -> None:
    for path in ("/v1/entities/bad/records", "/v1/models/wine/outcomes"):
        for kind in ("text/plain", "multipart/form-data; boundary=x", "application/json; charset=utf-16"):
            assert call(entities, "POST", path, b"{}", Content_Type=kind).status == 415
        encoded = call(entities, "POST", path, b"{}", Content_Type="application/json", Content_Encoding="br")
        assert encoded.status == 415
        assert wire.ask(entities, wire.request(path, b" " * (5 << 20))).status == 413
        assert call(entities, "PUT", path).status == 405


@SQLITE_ALONE
@pytest.mark.parametrize(
    "name",
    ["%00", "..%2f..", "%2e%2e", "a%0d%0ab", "%e2%80%ae", "a" * 65, "-a", "%C3%A9", "a%20b", "a:b", "'%20or%201=1"],
)
def test_what_is_no_name_of_an_entity_is_not_found(entities: Service, name: str) -> None:
    body = json.dumps({"values": {"x": 1}}).encode()
    for method, path, content in (("POST", "records", body), ("GET", "predictions", None), ("GET", "events", None)):
        headers = {"Content_Type": "application/json"} if content else {}
        assert call(entities, method, f"/v1/entities/{name}/{path}", content, **headers).status == 404


@SQLITE_ALONE
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?limit=0", 422),
        ("?limit=-1", 422),
        ("?limit=x", 422),
        ("?limit=1e3", 422),
        ("?limit=9999999999", 422),
        ("?limit=%D9%A5", 422),
        ("?explain=maybe", 422),
        ("?models=nobody", 404),
        ("?models=market-range,%00", 404),
        ("?models=wine", 422),
    ],
)
def test_a_question_that_cannot_be_is_refused(entities: Service, query: str, status: int) -> None:
    answer = ask(entities, "AAPL", query)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_outcomes_are_stored_once_and_judge_the_live_version(entities: Service) -> None:
    example = entities.get("/v1/models/wine")["example"]
    said = post(entities, "/v1/models/wine:predict", {"instances": [example]}).json["predictions"][0]["label"]
    other = next(label for label in ("class_0", "class_1") if label != said)
    content = {"instances": [example] * 4, "outcomes": [said, said, said, other], "request_id": "a-request"}
    first, second = send_outcomes(entities, "wine", content), send_outcomes(entities, "wine", content)
    assert (first.status, first.json) == (201, {"model": "wine", "version": "1", "stored": 4})
    assert (second.status, second.json["stored"]) == (200, 0)
    late = send_outcomes(entities, "diabetes", late_outcome(entities), Prefer="respond-async")
    assert (late.status, late.json["accepted"]) == (202, 1)
    figures = admin_figures(entities)["quality"]
    wine = {"version": "1", "outcomes": 4, "accuracy": 0.75}
    assert {name: figures["wine"][name] for name in wine} == wine
    assert figures["wine"]["log_loss"] > 0
    shown = entities.get("/v1/models/wine/quality")["versions"]
    assert [(one["version"], one["outcomes"], one["accuracy"]) for one in shown] == [("1", 4, 0.75)]
    assert figures["mortgage"] == {"version": "1", "outcomes": 0}


def late_outcome(service: Service) -> dict[str, object]:
    example = service.get("/v1/models/diabetes")["example"]
    return {"instances": [list(example.values())], "outcomes": [100.5], "time": "2024-05-01"}


BAD_OUTCOMES = {
    "[]": 400,
    "{}": 422,
    '{"instances": [], "outcomes": []}': 422,
    '{"instances": [EXAMPLE], "outcomes": []}': 422,
    '{"instances": [EXAMPLE], "outcomes": ["class_9"]}': 422,
    '{"instances": [EXAMPLE], "outcomes": [null]}': 422,
    '{"instances": [EXAMPLE], "outcomes": [true]}': 422,
    '{"instances": [EXAMPLE], "outcomes": [NaN]}': 400,
    '{"instances": [{"alcohol": 1}], "outcomes": ["class_0"]}': 422,
    '{"instances": [EXAMPLE], "outcomes": ["class_0"], "version": "9"}': 404,
    '{"instances": [EXAMPLE], "outcomes": ["class_0"], "time": "then"}': 422,
    '{"instances": [EXAMPLE], "outcomes": ["class_0"], "request_id": ""}': 422,
    '{"instances": [EXAMPLE], "outcomes": ["class_0"], "more": 1}': 422,
}


@SQLITE_ALONE
@pytest.mark.parametrize("text", BAD_OUTCOMES)
def test_outcomes_that_cannot_be_are_refused(entities: Service, text: str) -> None:
    example = json.dumps(entities.get("/v1/models/wine")["example"])
    body = text.replace("EXAMPLE", example).encode()
    answer = call(entities, "POST", "/v1/models/wine/outcomes", body, Content_Type="application/json")
    assert answer.status == BAD_OUTCOMES[text], answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"


@SQLITE_ALONE
def test_too_many_outcomes_and_those_of_no_model_are_refused(entities: Service) -> None:
    example = entities.get("/v1/models/diabetes")["example"]
    many = {"instances": [example] * 21, "outcomes": [1] * 21}
    assert send_outcomes(entities, "diabetes", many).status == 413
    assert send_outcomes(entities, "nobody", many).status == 404
    for truth in ("high", True, 10**400, None):
        assert send_outcomes(entities, "diabetes", {"instances": [example], "outcomes": [truth]}).status in (400, 422)
