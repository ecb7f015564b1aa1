"""Jobs as values: their ids, keys and the times between attempts."""

from __future__ import annotations

import re

import pytest

from serving.jobs.job import Backoff, JobRequest, content_key
from serving.jobs.store import new_owner


def test_an_owner_is_named_by_host_process_time_and_chance_and_never_twice() -> None:
    owners = {new_owner() for _ in range(100)}
    assert len(owners) == 100
    assert all(re.fullmatch(r"[^:]+:\d+:\d{13}:[0-9a-f]{16}", owner) for owner in owners)


@pytest.mark.parametrize(
    ("stalled", "share", "seconds"), [(1, 0.0, 1.0), (1, 1.0, 0.5), (3, 0.0, 4.0), (10, 0.0, 60.0), (500, 0.5, 45.0)]
)
def test_attempts_are_exponentially_further_apart_within_a_bound(stalled: int, share: float, seconds: float) -> None:
    assert Backoff(first=1.0, longest=60.0).delay(stalled, share) == seconds


def test_equal_work_has_an_equal_key_and_other_work_another() -> None:
    key = content_key("explain", "sha", b"{}", [b"ab", b"c"])
    assert key == content_key("explain", "sha", b"{}", (b"ab", b"c"))
    others = [
        content_key("predict", "sha", b"{}", [b"ab", b"c"]),
        content_key("explain", "other", b"{}", [b"ab", b"c"]),
        content_key("explain", "sha", b"", [b"ab", b"c"]),
        content_key("explain", "sha", b"{}", [b"a", b"bc"]),
        content_key("explain", "sha", b"{}", [b"ab", b"c", b""]),
    ]
    assert len({key, *others}) == 6


@pytest.mark.parametrize("changes", [{"operation": ""}, {"inputs": ()}, {"max_attempts": 0}])
def test_request_that_is_no_job_is_refused(changes: dict[str, object]) -> None:
    fields: dict[str, object] = {"operation": "explain", "inputs": (b"",)}
    with pytest.raises(ValueError, match="a job needs"):
        JobRequest(**(fields | changes))  # type: ignore[arg-type]
