"""The FEEDS setting."""

from __future__ import annotations

import pytest

from serving.entities.feeds import Feed, parse_feeds

PRICES = '{"name": "prices", "url": "https://example.org/prices.csv?key=secret", "format": "csv", "entity": "ticker"}'


def test_feeds_are_read() -> None:
    assert parse_feeds("") == ()
    (feed,) = parse_feeds(f"[{PRICES}]")
    assert feed == Feed(name="prices", url="https://example.org/prices.csv?key=secret", format="csv", entity="ticker")


def test_the_address_stays_out_of_what_is_printed() -> None:
    assert "secret" not in repr(parse_feeds(f"[{PRICES}]"))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "{}",
        "[1]",
        f"[{PRICES}, {PRICES}]",
        PRICES,
        f"[{PRICES}]".replace("https", "file"),
        f"[{PRICES}]".replace("https://example.org", "https://"),
        f"[{PRICES}]".replace("https://example.org", "https://["),
        f"[{PRICES}]".replace('"csv"', '"xml"'),
        f"[{PRICES}]".replace('"prices"', '"../prices"'),
        f"[{PRICES}]".replace('"entity"', '"entities"'),
        f"[{PRICES}]".replace('"entity": "ticker"', '"max_rows": 0'),
    ],
)
def test_what_is_no_feed_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as refusal:
        parse_feeds(text)
    assert "secret" not in str(refusal.value)
