"""What a rate is, and what an answer says of it."""

from __future__ import annotations

import pytest

from serving.http.rate_limit import Limiter
from serving.shared.rate_table import Rate, RateTable, RateVerdict, parse_rate


def test_a_rate_is_read_and_bursts_as_a_whole_unless_told_otherwise() -> None:
    assert parse_rate("600/minute", 0) == Rate(600, 60.0, 600)
    assert parse_rate("5/second", 20) == Rate(5, 1.0, 20)
    assert parse_rate("600/minute", 0).interval == pytest.approx(0.1)


@pytest.mark.parametrize(
    "text", ["", "600", "0/minute", "-1/minute", "1.5/minute", "600/fortnight", "600/minute ", "a"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a number of requests and a period"):
        parse_rate(text, 0)


def test_more_than_the_table_can_tell_apart_is_refused() -> None:
    assert parse_rate("1000/second", 0)
    with pytest.raises(ValueError, match="at most 1000 requests a second"):
        parse_rate("1001/second", 0)


def test_a_debt_of_more_than_a_year_is_refused() -> None:
    assert parse_rate("1/day", 365)
    with pytest.raises(ValueError, match="more than a year"):
        parse_rate("1/day", 366)


def test_headers_say_what_is_left_and_when_all_is_back() -> None:
    limiter = Limiter(RateTable(parse_rate("60/minute", 10), buckets=1))
    policy = (b"ratelimit-policy", b'"default";q=10;w=10')
    assert limiter.headers(RateVerdict(allowed=True, debt=1.0)) == [policy, (b"ratelimit", b'"default";r=9;t=1')]
    assert limiter.headers(RateVerdict(allowed=True, debt=10.0)) == [policy, (b"ratelimit", b'"default";r=0;t=10')]
    refused = RateVerdict(allowed=False, debt=9.25)
    assert limiter.headers(refused) == [policy, (b"ratelimit", b'"default";r=0;t=10')]
    assert limiter.retry_after(refused) == pytest.approx(0.25)
