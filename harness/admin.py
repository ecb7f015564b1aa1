"""Asks a running service what only its admin may."""

from __future__ import annotations

from typing import Any

from harness.jobs import call
from harness.service import ADMIN_TOKEN, Service


def ask_admin(service: Service, path: str) -> tuple[int, Any]:
    """Status and JSON of a POST to the admin's routes."""
    answer = call(service, "POST", f"/api/admin/{path}", b"", Authorization=f"Bearer {ADMIN_TOKEN}")
    return answer.status, answer.json


def admin_figures(service: Service) -> Any:
    """The metrics of the service; they may be half a second old."""
    answer = call(service, "GET", "/api/admin/metrics", Authorization=f"Bearer {ADMIN_TOKEN}")
    assert answer.status == 200
    return answer.json
