"""Who is asked about records and outcomes, and tells of them."""

from __future__ import annotations

from assembly.source import data_source
from registry.registry import Registry
from serving.entities.notifier import Arrivals
from serving.entities.predictor import EntityPredictor
from serving.entities.reading import RecordReader
from serving.entities.writer import OutcomeWriter
from serving.events.log import EventLog
from serving.monitoring.quality import LiveQuality, OutcomeReader
from serving.parts import Data
from serving.predict.inference import Inference
from serving.settings import Settings
from serving.shared.metrics import Metrics


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
