"""Feeds: the setting, and polls of a server in this process that has good documents, bad ones, or none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from harness.stub import Stub, reply, serving
from serving.entities.feeds import Feed, Polled, Poller, parse_feeds, poll_request
from serving.entities.record import Record, make_record
from serving.entities.store import Added
from serving.errors import InvalidRequest, OutboundFailed, StoreUnavailable
from serving.jobs.attempt import AttemptFailed, JobFailed
from serving.jobs.job import Job, JobRequest, job_from
from serving.storage.http import Outbound

pytestmark = pytest.mark.anyio

CSV = b"""\xef\xbb\xbfticker,date,close,note,halted
AAPL,2026-05-01,171.5,,false
MSFT,2026-05-01,402,up_2,TRUE
"""
JSON = json.dumps(
    {
        "rows": [
            {"entity": "AAPL", "time": "2026-05-01", "close": 171.5, "note": None, "halted": False},
            {"entity": "MSFT", "time": "2026-05-01", "close": 402, "note": "up_2", "halted": True},
        ]
    }
).encode()


DAY = "2026-05-01"


class Store:
    """Keeps records as a real one does: what is there already changes nothing."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Record] = {}
        self.unavailable = False
        self.batches: list[int] = []
        self.kinds: set[str | None] = set()

    async def add_records(self, records: Sequence[Record], kind: str | None = None) -> Added:
        if self.unavailable:
            raise StoreUnavailable("unavailable")
        self.batches.append(len(records))
        before = len(self.kept)
        for record in records:
            self.kept.setdefault((record.entity, record.id), record)
        self.kinds.add(kind)
        return Added(len(self.kept) - before)


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    outbound = Outbound(first_wait=0.001, timeout=1.0)
    yield outbound
    await outbound.close()


def poller(outbound: Outbound, stub: Stub, store: Store, **options: Any) -> Poller:
    feed = Feed(**({"name": "prices", "url": stub.url, "format": "csv"} | options))
    return Poller([feed], outbound, store)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("document", "options"),
    [(CSV, {"entity": "ticker", "time": "date"}), (JSON, {"format": "json", "rows": "rows"})],
    ids=["CSV", "JSON"],
)
async def test_rows_become_records_once(outbound: Outbound, document: bytes, options: dict[str, str]) -> None:
    store = Store()
    async with serving(lambda _number, _head: reply(200, document)) as stub:
        feeds = poller(outbound, stub, store, **options)
        assert await feeds.fetch("prices") == Polled(records=2, new=2)
        assert await feeds.fetch("prices") == Polled(records=2, new=0), "polled again"
        await poller(outbound, stub, store, **options, kind="share").fetch("prices")
    assert store.kinds == {None, "share"}
    assert list(store.kept.values()) == [
        make_record("AAPL", {"close": 171.5, "note": None, "halted": False}, "2026-05-01"),
        make_record("MSFT", {"close": 402, "note": "up_2", "halted": True}, "2026-05-01"),
    ]


async def test_cells_of_a_table_keep_their_line_ends_and_separators(outbound: Outbound) -> None:
    document = 'entity,time,note\r\na,2026-05-01,"two\nlines"\r\nb,2026-05-02,caf\x85e\u2028\x0c\r\n'.encode()
    store = Store()
    async with serving(lambda _number, _head: reply(200, document)) as stub:
        assert await poller(outbound, stub, store).fetch("prices") == Polled(records=2, new=2)
    notes = [record.values["note"] for record in store.kept.values()]
    assert notes == ["two\nlines", "caf\x85e\u2028\x0c"]


async def test_bad_rows_are_named_and_counted_and_good_ones_kept(outbound: Outbound) -> None:
    lines = ["entity,time,close", f"a,{DAY},1", f",{DAY},2", "b,,3", f"c,{DAY}", f"d,{DAY},5", *["x"] * 10]
    store = Store()
    async with serving(lambda _number, _head: reply(200, "\n".join(lines).encode())) as stub:
        polled = await poller(outbound, stub, store).fetch("prices")
    assert (polled.records, polled.new, polled.refused) == (2, 2, 13)
    assert polled.faults[:3] == ("row 2: entity is missing", "row 3: time is missing", "row 4: is not a row")
    assert len(polled.faults) == 5
    bad: list[Any] = [1, None, [], {"entity": True, "time": DAY}, {"entity": {}, "time": DAY}]
    rows = [*bad, {"entity": 20260501, "time": 20260501, "v": 1}]
    async with serving(lambda _number, _head: reply(200, json.dumps(rows).encode())) as stub:
        polled = await poller(outbound, stub, Store(), format="json").fetch("prices")
    assert (polled.records, polled.refused) == (1, 5)


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"{}", b"3", b"[" * 100_000, b"\xff", b'{"rows": {}}', b"null"],
    ids=lambda document: str(document[:8]),
)
async def test_a_document_that_is_none_is_refused(outbound: Outbound, document: bytes) -> None:
    async with serving(lambda _number, _head: reply(200, document)) as stub:
        with pytest.raises(InvalidRequest):
            await poller(outbound, stub, Store(), format="json", rows="rows").fetch("prices")


@pytest.mark.parametrize(
    "document", [b"", b"\xff,time", b'entity,time\n"', b"time,time", b"entity,time\n" + b"a,1\n" * 99]
)
async def test_a_table_that_is_none_or_too_long_is_refused(outbound: Outbound, document: bytes) -> None:
    async with serving(lambda _number, _head: reply(200, document)) as stub:
        with pytest.raises(InvalidRequest):
            await poller(outbound, stub, Store(), max_rows=50).fetch("prices")


async def test_what_has_not_changed_is_not_sent_again_once_it_is_kept(outbound: Outbound) -> None:
    def answer(_number: int, head: bytes) -> bytes:
        known = b'if-none-match: "7"' in head.lower() and b"if-modified-since: then" in head.lower()
        return reply(304) if known else reply(200, b"entity,time,v\na,2026-05-01,1\n", etag='"7"', last_modified="then")

    store = Store()
    async with serving(answer) as stub:
        feeds = poller(outbound, stub, store)
        store.unavailable = True
        with pytest.raises(StoreUnavailable):
            await feeds.fetch("prices")
        store.unavailable = False
        assert (await feeds.fetch("prices")).new == 1, "what was not kept is asked for again"
        assert (await feeds.fetch("prices")).unchanged


async def test_many_rows_are_kept_some_at_a_time(outbound: Outbound) -> None:
    document = "entity,time,v\n" + "".join(f"a,{DAY},{number}\n" for number in range(1200))
    store = Store()
    async with serving(lambda _number, _head: reply(200, document.encode())) as stub:
        assert (await poller(outbound, stub, store).fetch("prices")).new == 1200
    assert store.batches == [500, 500, 200]


FIELDS = ("operation", "model", "version", "parameters", "max_attempts")


def job_of(request: JobRequest) -> Job:
    """As a runner has it."""
    times = {"created": 0.0, "due": 0.0, "state": "running", "chunks": 1}
    return job_from({"id": "1", **{name: getattr(request, name) for name in FIELDS}, **times})


async def test_a_job_polls_the_feed_that_it_names(outbound: Outbound) -> None:
    async with serving(lambda _number, _head: reply(200, b"entity,time,v\na,2026-05-01,1\n,,2\n")) as stub:
        result = await poller(outbound, stub, Store())(job_of(poll_request("prices")), 0, b"", lambda _share: None)
    told = {"records": 1, "new": 1, "refused": 1, "faults": ["row 2: entity is missing"], "unchanged": False}
    assert json.loads(result) == told


async def test_a_feed_of_another_instance_is_left_to_it(outbound: Outbound) -> None:
    async with serving(lambda _number, _head: None) as stub:
        with pytest.raises(AttemptFailed, match="FEEDS does not name shares here"):
            await poller(outbound, stub, Store())(job_of(poll_request("shares")), 0, b"", lambda _share: None)


@pytest.mark.parametrize("answer", [None, b"\r\n\r\n", reply(500), reply(404), reply(200, b"x" * 2000), reply(302)])
async def test_a_feed_that_fails_is_logged_and_fails_its_job(
    outbound: Outbound, answer: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(lambda _number, _head: answer) as stub:
        feeds = poller(outbound, stub, Store(), max_bytes=1000)
        with pytest.raises((OutboundFailed, InvalidRequest)):
            await feeds.fetch("prices")
        with pytest.raises(JobFailed, match="feed prices: ") as failed:
            await feeds(job_of(poll_request("prices")), 0, b"", lambda _share: None)
    said = capsys.readouterr().out + str(failed.value)
    assert "Feed failed" in said
    assert "secret-path" not in said


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
