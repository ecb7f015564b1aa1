"""The service under attack, which must be as well afterwards as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.service import Service
from tests.attacks.payloads import GOOD
from tests.wire import ask


@pytest.fixture
def target(service: Service) -> Iterator[Service]:
    """The service; after the test the same workers must still predict."""
    workers = service.workers
    yield service
    for _ in range(4):
        assert ask(service, GOOD).status == 200
    assert service.workers == workers
