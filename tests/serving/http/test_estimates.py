"""A job that is looked at before it is made: its rows are checked, and its time is estimated from what a row takes."""

from __future__ import annotations

import httpx
import pytest

CSV = {"Content-Type": "text/csv"}


@pytest.fixture(scope="module")
def lines(client: httpx.Client) -> list[str]:
    """The header of a CSV for wine, and one row."""
    example = client.get("/v1/models/wine").json()["example"]
    return [",".join(example), ",".join(map(str, example.values()))]


def look(client: httpx.Client, content: str, **query: str) -> httpx.Response:
    asked = {"model": "wine", "operation": "predict", "dry_run": "true"} | query
    return client.post("/v1/jobs", params=asked, content=content, headers=CSV)


@pytest.mark.parametrize("operation", ["predict", "explain", "importance"])
def test_the_time_is_that_of_the_rows(client: httpx.Client, lines: list[str], operation: str) -> None:
    header, row = lines
    answer = look(client, "\n".join([header, *[row] * 1000]), operation=operation)
    assert answer.status_code == 200
    found = answer.json()
    assert (found["model"], found["operation"], found["rows"]) == ("wine", operation, 1000)
    assert 0 < found["row_seconds"] < 1
    assert found["seconds"] > 1000 * found["row_seconds"]
    assert "Location" not in answer.headers


def test_rows_are_refused_by_line_as_those_of_a_job_are(client: httpx.Client, lines: list[str]) -> None:
    header, row = lines
    content = "\n".join([header, row, row.replace(row.partition(",")[0], "much", 1)])
    looked, sent = look(client, content), look(client, content, dry_run="false")
    assert looked.status_code == sent.status_code == 422
    assert looked.json()["detail"] == sent.json()["detail"] == "line 3: alcohol must be a number"


def test_json_is_looked_at_too(client: httpx.Client) -> None:
    example = client.get("/v1/models/wine").json()["example"]
    body = {"operation": "predict", "model": "wine", "instances": [example] * 3}
    assert client.post("/v1/jobs", params={"dry_run": "true"}, json=body).json()["rows"] == 3
    refused = client.post("/v1/jobs", params={"dry_run": "perhaps"}, json=body)
    assert refused.status_code == 422
    assert "dry_run must be true or false" in refused.json()["detail"]
