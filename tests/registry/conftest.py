"""What all tests of registry/ share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Numeric libraries on one thread, as in the service; threads that spin for a row take seconds on a busy box."""
    with threadpool_limits(1):
        yield
