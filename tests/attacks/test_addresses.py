"""Rate limits on the real service: over its workers, over instances, and against clients that lie about themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.servers import RedisServer
from harness.service import Service
from harness.wire import Answer, Connection, ask, check_refusal, request
from tests.attacks.payloads import GOOD, PATH, ROW, body

LIMIT = 20
BASE = {"MAX_REQUESTS": "0", "WEB_CONCURRENCY": "3", "ROLES": "web"}


@pytest.fixture(scope="module")
def behind_proxy(few_models: Path) -> Iterator[Service]:
    """One proxy in front, which the tests play."""
    limits = {"RATE_LIMIT": f"{LIMIT}/hour", "TRUSTED_PROXY_COUNT": "1", "MAX_STREAMS_PER_ADDRESS": "1"}
    with Service({"MODEL_DIR": str(few_models)} | BASE | limits) as service:
        yield service


def predict(service: Service, forwarded: str) -> Answer:
    return ask(service, request(PATH, body(), x_forwarded_for=forwarded))


def test_all_workers_of_a_box_count_together(behind_proxy: Service) -> None:
    answers = [predict(behind_proxy, "203.0.113.1") for _ in range(LIMIT + 10)]
    assert Counter(answer.status for answer in answers) == {200: LIMIT, 429: 10}
    first, refused = answers[0], answers[-1]
    assert first.headers["ratelimit-policy"] == refused.headers["ratelimit-policy"] == '"default";q=20;w=3600'
    assert first.headers["ratelimit"] == '"default";r=19;t=180'
    assert refused.headers["ratelimit"].startswith('"default";r=0;t=3')
    assert 150 < int(refused.headers["retry-after"]) <= 180
    assert check_refusal(refused, 429)["detail"] == "too many requests from this address"


@pytest.mark.parametrize("lie", ["198.51.100.{n}", "198.51.100.{n}, 10.0.0.{n}", "{n}", "2001:db8:{n}::1"])
def test_an_address_that_the_client_made_up_is_no_way_around_the_limit(behind_proxy: Service, lie: str) -> None:
    address = f"203.0.113.{100 + len(lie)}"
    statuses = [predict(behind_proxy, f"{lie.format(n=number)}, {address}").status for number in range(LIMIT + 5)]
    assert Counter(statuses) == {200: LIMIT, 429: 5}


def test_addresses_of_one_ipv6_network_are_one_client(behind_proxy: Service) -> None:
    statuses = [predict(behind_proxy, f"2001:db8:7:7::{number:x}").status for number in range(LIMIT + 5)]
    assert Counter(statuses) == {200: LIMIT, 429: 5}


def test_everything_but_health_is_counted(behind_proxy: Service) -> None:
    def get(path: str) -> int:
        return ask(behind_proxy, request(path, method="GET", x_forwarded_for="203.0.113.2")).status

    assert {get("/v1/models") for _ in range(LIMIT)} == {200}
    assert [get(path) for path in ("/v1/models", "/api/admin/metrics", "/nowhere", "/healthy")] == [429] * 4
    assert [get(path) for path in ("/health", "/health/live", "/health/ready")] == [200] * 3


def test_streams_are_counted_by_the_same_address(behind_proxy: Service) -> None:
    job = b'{"operation": "predict", "model": "wine", "instances": [[%s]]}' % b",".join(ROW)
    sent = ask(behind_proxy, request("/v1/jobs", job, x_forwarded_for="203.0.113.4"))
    path = f"{sent.headers['location']}/events"
    with ExitStack() as open_streams:
        statuses: list[int] = []
        for client in ["203.0.113.4"] * 9 + ["203.0.113.5"]:
            stream = open_streams.enter_context(Connection(behind_proxy))
            stream.send(request(path, method="GET", x_forwarded_for=f"198.51.100.{len(statuses)}, {client}"))
            statuses.append(stream.status())
    assert statuses[0] == statuses[-1] == 200
    assert Counter(statuses[:-1])[200] <= 3, "one in each worker"


def test_the_log_names_the_client_and_not_the_proxy(behind_proxy: Service) -> None:
    assert predict(behind_proxy, "6.6.6.6, 203.0.113.3").status == 200
    clients = {line["client"] for line in behind_proxy.events("Request completed")}
    assert "203.0.113.3" in clients
    assert not {"6.6.6.6", "127.0.0.1"} & clients


def test_without_proxies_the_header_changes_nothing(few_models: Path) -> None:
    with Service({"MODEL_DIR": str(few_models), "RATE_LIMIT": "5/hour"} | BASE) as service:
        statuses = [predict(service, f"198.51.100.{number}").status for number in range(8)]
        assert Counter(statuses) == {200: 5, 429: 3}


def test_instances_count_together_through_redis_and_alone_without_it(few_models: Path, own_server: RedisServer) -> None:
    environ = {"MODEL_DIR": str(few_models), "REDIS_URL": own_server.url, "RATE_LIMIT": "30/hour"} | BASE
    with Service(environ) as first, Service(environ) as second:
        statuses = [ask((first, second)[number % 2], GOOD).status for number in range(36)]
        assert Counter(statuses) == {200: 30, 429: 6}
        own_server.kill()
        statuses = [ask(first, GOOD).status for _ in range(20)]
        assert Counter(statuses) == {200: 12, 429: 8}, "of its 30, this box has let 18 through"
        assert first.events("Rate limits are not shared")


def test_a_reload_keeps_the_service_limited(few_models: Path) -> None:
    token = "a-token-only-for-tests"
    environ = {"MODEL_DIR": str(few_models), "RATE_LIMIT": "5/hour", "ADMIN_TOKEN": token} | BASE
    with Service(environ) as service:
        answer = ask(service, request("/api/admin/models:reload", authorization=f"Bearer {token}"))
        assert json.loads(answer.body)["added"] == []
        assert 429 in {ask(service, GOOD).status for _ in range(12)}
