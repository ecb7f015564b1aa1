"""Records and outcomes that strangers send: they neither delete nor displace those of others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from harness.entities import ask, columns, post, send_outcomes, send_record
from harness.service import Service

TOO_LATE = ["9999-12-31", "9999-12-31T23:59:59.999+14:00", (datetime.now(UTC) + timedelta(hours=26)).isoformat()]


@pytest.mark.parametrize("time", TOO_LATE)
def test_records_of_the_future_are_refused_and_delete_nothing(target: Service, time: str) -> None:
    before = ask(target, "AAPL", "?models=market-range").json["records"]
    records = [{"values": columns(1), "id": f"future-{number}"} for number in range(1000)]
    answer = post(target, "/v1/entities/AAPL/records", {"records": [*records[1:], records[0] | {"time": time}]})
    assert answer.status == 422
    assert answer.json["detail"] == "record 999: a time may be at most a day ahead; nothing is stored"
    assert ask(target, "AAPL", "?models=market-range").json["records"] == before
    assert send_record(target, "AAPL", values=columns(1), time=time).status == 422


@pytest.mark.parametrize("time", TOO_LATE)
def test_outcomes_of_the_future_are_refused(target: Service, time: str) -> None:
    example = target.get("/v1/models/wine")["example"]
    content = {"instances": [example], "outcomes": ["class_0"], "time": time}
    answer = send_outcomes(target, "wine", content)
    assert (answer.status, answer.json["detail"]) == (422, "a time may be at most a day ahead")
