"""What both the API and the pages show of a service: made once, so that it is looked at and computed once for both."""

from __future__ import annotations

from dataclasses import dataclass

from serving.http.routes.health import HealthCheck
from serving.http.routes.importance import BackgroundImportance
from serving.http.routes.models import ModelFigures
from serving.service import Service
from serving.status.snapshot import Snapshot, recent_snapshot
from serving.storage.background import Recent


@dataclass(frozen=True, slots=True)
class Views:
    """The views of one service, each of which remembers what it has seen for a while."""

    snapshots: Recent[Snapshot]
    health: HealthCheck
    importance: BackgroundImportance
    figures: ModelFigures


def make_views(service: Service) -> Views:
    """Make the views of a service; nothing is looked at before the first request."""
    return Views(recent_snapshot(service), HealthCheck(service), BackgroundImportance(service), ModelFigures(service))
