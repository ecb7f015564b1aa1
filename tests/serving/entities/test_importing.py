"""Records brought in from a CSV file."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.entities.importing import import_records, read_records_csv
from serving.entities.record import make_record, value_of
from serving.entities.sqlite import SQLiteEntityStore
from serving.entities.store import BATCH, Added
from serving.errors import InvalidRequest

HEADER = b"entity,time,x\n"


def write(path: Path, content: bytes) -> Path:
    file = path / "records.csv"
    file.write_bytes(content)
    return file


def test_cells_become_what_they_look_like(tmp_path: Path) -> None:
    lines = (
        b'\xef\xbb\xbftime,more,"a, b",entity,id',
        b"2024-01-01,TRUE,1.50,a,7",
        b'2024-01-02,,"-3",b,',
        b'2024-01-03,1_0,"\xc3\xa9\n""",c,',
    )
    table = b"\r\n".join(lines)
    first, second, third = read_records_csv(write(tmp_path, table))
    assert first == make_record("a", {"more": True, "a, b": 1.5}, "2024-01-01", "7")
    assert second == make_record("b", {"more": None, "a, b": -3}, "2024-01-02")
    assert third.values == {"more": "1_0", "a, b": 'é\n"'}


@pytest.mark.anyio
async def test_a_file_may_be_imported_again_and_is_of_any_size(tmp_path: Path) -> None:
    lines = b"".join(b"%s,2024-01-01T00:00:%02d,%d\n" % (b"ab"[n % 2 : n % 2 + 1], n % 60, n) for n in range(BATCH + 3))
    store = SQLiteEntityStore(tmp_path, keep_records=10_000, keep_outcomes=1)
    file = write(tmp_path, HEADER + lines)
    for new in (BATCH + 3, 0):
        assert await import_records(store, read_records_csv(file)) == (BATCH + 3, Added(new, BATCH + 3 - new))
    assert len(await store.newest("a", 10_000)) == (BATCH + 4) // 2
    await store.close()


BAD: dict[bytes, str] = {
    b"": "line 1: there must be a column entity",
    b"entity,x\n": "line 1: there must be a column time",
    b"entity,time,x,x\n": "line 1: two columns have the same name",
    HEADER + b"a,2024-01-01,1\na,2024-01-02\n": "line 3: has 2 values, the header has 3",
    HEADER + b"a,yesterday,1\n": "line 2: a time must be in ISO 8601",
    HEADER + b"../a,2024-01-01,1\n": "line 2: an entity is",
    HEADER + b"a,2024-01-01,nan\n": "line 2: x must be finite",
    HEADER + b"\na,2024-01-01,1\n": "line 2: is empty",
    HEADER + b"a,2024-01-01,\xff\n": "line 2: is not UTF-8",
    HEADER + b'a,2024-01-01,"1\n': "line 2: is not CSV: a quote is not closed",
    HEADER + b"a,2024-01-01,%s\n" % (b"9" * 200_000): "line 2: is too long",
    b"entity,time\na,2024-01-01\n": "line 2: values must be an object of 1 to 200 columns",
}


@pytest.mark.parametrize("content", BAD, ids=lambda content: str(content[-30:]))
def test_a_file_that_cannot_be_names_its_line(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path, content)
    with pytest.raises(InvalidRequest) as refused:
        list(read_records_csv(file))
    assert str(refused.value).startswith(str(file))
    assert BAD[content] in str(refused.value)


@pytest.mark.anyio
async def test_what_came_before_a_bad_line_is_kept_and_counted(tmp_path: Path) -> None:
    lines = b"".join(b"a,2024-01-01,%d\n" % number for number in range(BATCH))
    store = SQLiteEntityStore(tmp_path, keep_records=10_000, keep_outcomes=1)
    with pytest.raises(InvalidRequest, match=f"line {BATCH + 2}: .*; the {BATCH} records before are imported"):
        await import_records(store, read_records_csv(write(tmp_path, HEADER + lines + b"a,never,1\n")))
    assert len(await store.newest("a", 10_000)) == BATCH
    await store.close()


@pytest.mark.parametrize(
    ("cell", "value"),
    [("01069", "01069"), ("0", 0), ("0.5", 0.5), ("10", 10), ("-05", -5), ("TRUE", True)],
)
def test_digits_after_a_leading_zero_are_a_code(cell: str, value: object) -> None:
    assert value_of(cell) == value
