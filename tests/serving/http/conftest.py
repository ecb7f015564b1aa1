"""An HTTP client of the shared service."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from harness.service import Service


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    """Keeps its connections, follows nothing, knows no proxy."""
    with httpx.Client(base_url=service.address, timeout=30, trust_env=False) as client:
        yield client
