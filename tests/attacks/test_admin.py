"""The admin's routes when nobody is the admin."""

from __future__ import annotations

import pytest

from harness.service import Service
from harness.wire import ask, check_refusal, request


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer "}, {"authorization": "Bearer x"}, {"x_admin_token": ""}]
)
@pytest.mark.parametrize(
    "path", ["/api/admin/metrics", "/api/admin/", "/api/admin/models:reload", "/api/admin/metrics?admin_token="]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_admin_is_not_there_when_no_token_is_set(
    impatient: Service, method: str, path: str, headers: dict[str, str]
) -> None:
    check_refusal(ask(impatient, request(path, b"", method, **headers)), 404)
