"""Who is asked about records and outcomes, and tells of them."""

from __future__ import annotations

from assembly.source import data_source
from registry.registry import Registry
from serving.arrivals import Arrivals
from serving.data.reading import RecordReader
from serving.data.writer import OutcomeWriter
from serving.entities import EntityPredictor
from serving.events.log import EventLog
from serving.inference import Inference
from serving.metrics.recording import Metrics
from serving.outcomes import LiveQuality, OutcomeReader
from serving.parts import Data
from serving.settings import Settings


def build_data(
    settings: Settings, registry: Registry, inference: Inference, events: EventLog, metrics: Metrics
) -> Data:
    """What keeps records and outcomes, and who is asked about them. Raises CannotServe."""
    source = data_source(settings)
    predictor = EntityPredictor(registry, inference, RecordReader(source, settings.max_limit_checkins), metrics)
    return Data(
        source,
        predictor,
        Arrivals(predictor, events),
        OutcomeReader(registry, inference, max_instances=settings.max_instances),
        OutcomeWriter(source),
        LiveQuality(registry, source),
    )
