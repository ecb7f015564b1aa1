"""The one reader of CSV: any bytes, cut anywhere, give the same rows, and what is wrong has a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pytest

from serving.errors import InvalidRequest
from serving.jobs.csv_reader import CsvReader

DOCUMENT = '\ufeffname,note\r\na,"two\nlines, and ""quotes"""\r\n"",\nb,5" pipe\n"\r\n",é\n\n'.encode()
ROWS = [["name", "note"], ["a", 'two\nlines, and "quotes"'], ["", ""], ["b", '5" pipe'], ["\r\n", "é"]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_document_gives_the_same_rows_however_it_is_cut(size: int) -> None:
    pieces = [DOCUMENT[:3], *(DOCUMENT[first : first + size] for first in range(3, len(DOCUMENT), size))]
    assert list(CsvReader().rows(pieces)) == ROWS


def test_rows_are_those_of_the_standard_library() -> None:
    text = io.StringIO(DOCUMENT.decode("utf-8-sig"), newline="")
    assert [row for row in csv.reader(text, strict=True) if row] == ROWS


def test_rows_come_as_soon_as_they_are_complete_and_know_their_line() -> None:
    reader = CsvReader()
    assert [(row, reader.line) for row in reader.feed(b'a\n"b\nb"\nc')] == [(["a"], 1), (["b\nb"], 2)]
    assert [(row, reader.line) for row in reader.end()] == [(["c"], 4)]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"a\n\nb\n", "line 2: is empty"),
        (b"a\n\n\n", "line 2: is empty"),
        (b"a\nb\n\r\n\n", "line 3: is empty"),
        (b"\n\n", "line 1: is empty"),
        (b'a\n"\n' + b'",x"y,"\n' * 100, "line 2: is not CSV; a quote within quotes is doubled"),
        (b'a\n"b\nb"\n\0\n', "line 4: has a NUL byte"),
        (b'a\n"b\n\xff"\n', "line 2: is not UTF-8"),
        (b'a\n"b" b\n', "line 2: is not CSV; a quote within quotes is doubled"),
        (b'a\n"b\nc\n', "line 2: is not CSV: a quote is not closed"),
        (b'a\n"' + b"b\n" * 40_000, "line 2: is too long"),
        (b"a\n" + b"b" * 70_000 + b"\n", "line 2: is too long"),
        (b"b" * 70_000, "line 1: is too long"),
    ],
    ids=lambda value: str(value[-40:]),
)
def test_what_is_wrong_has_a_line(document: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{reason}$"):
        list(CsvReader().rows([document]))


def test_empty_lines_may_be_skipped() -> None:
    assert list(CsvReader(skip_empty=True).rows([b"a\n\n\nb"])) == [["a"], ["b"]]


def test_a_quoted_field_of_many_lines_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, parse = [], csv.reader

    def counted(rows: list[str], **options: bool) -> Iterator[list[str]]:
        parsed.append(rows)
        return parse(rows, strict=options["strict"])

    monkeypatch.setattr(csv, "reader", counted)
    assert list(CsvReader().rows([b'"' + b'""\n' * 1000 + b'"\n'])) == [['"\n' * 1000]]
    assert len(parsed) == 2
