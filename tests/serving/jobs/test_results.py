"""The result of a job as CSV, which people open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from serving.jobs.job import Job, content_key
from serving.jobs.results import csv_result
from serving.jobs.rows import RowParameters

pytestmark = pytest.mark.anyio

FORMULAS = (
    '=HYPERLINK("http://x";"y")',
    "+1+2",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1+1",
)
HARMLESS = ("no", "a=b", "1", "-1", "+2.5e-7", "", "'=1", " x")


class Kept:
    """A store with the results of one job."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self.chunk = msgspec.json.encode(answers)[1:-1]

    async def result(self, _job_id: str, _chunk: int) -> bytes:
        return self.chunk


async def table(
    operation: str, answers: Sequence[Any], features: tuple[str, ...], labels: tuple[str, ...]
) -> list[Any]:
    parameters = RowParameters(
        content_hash=content_key("", "", b"", []),
        rows=len(answers),
        chunk_rows=len(answers),
        features=features,
        labels=labels,
        classes="predicted",
        top=None,
    )
    job = Job(
        id="1",
        operation=operation,
        model="m",
        version="1",
        parameters=msgspec.json.encode(parameters),
        state="done",
        chunks=1,
        max_attempts=1,
        created=0.0,
        due=0.0,
    )
    store: Any = Kept(answers)
    content = b"".join([piece async for piece in csv_result(store, job)])
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


@pytest.mark.parametrize("text", FORMULAS)
async def test_labels_and_features_that_look_like_formulas_are_texts(text: str) -> None:
    answer = {"label": text, "probabilities": {text: 1.0}}
    header, line = await table("predict", [answer], (), (text,))
    assert header == ["instance", "label", f"probability of {text}"]
    assert line == ["0", f"'{text}", "1.0"]
    explained = {"label": text, "output": -1.5, "base_value": -0.5, "values": {text: -1.0}}
    header, line = await table("explain", [explained], (text,), (text,))
    assert header == ["instance", "class", "output", "base_value", f"'{text}"]
    assert line == ["0", f"'{text}", "-1.5", "-0.5", "-1.0"]


@pytest.mark.parametrize("text", HARMLESS)
async def test_other_texts_and_numbers_stay_as_they_are(text: str) -> None:
    answer = {"label": text, "probabilities": {text: 1e-7}}
    _, line = await table("predict", [answer], (), (text,))
    assert line == ["0", text, "1e-07"]
