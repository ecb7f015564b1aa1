"""What is made once, before the first fork, and outlives every reload: all processes of the service share it."""

from __future__ import annotations

from dataclasses import dataclass

from serving.shared.book import Book
from serving.shared.pressure import Pressure
from serving.shared.reloads import Reloads
from serving.telemetry.alerts import Alerts


@dataclass(frozen=True, slots=True)
class Lasting:
    """Shared memory and sockets: what came of reloads, figures, want of memory, and what people have to be told."""

    reloads: Reloads
    book: Book
    pressure: Pressure
    alerts: Alerts
