"""Who is asked about records and outcomes, and tells of them."""

from __future__ import annotations

from assembly.source import data_source
from registry.registry import Registry
from serving.entities.notifier import EntityNotifier
from serving.entities.outcomes import OutcomeReader, OutcomeWriter
from serving.entities.predictor import EntityPredictor, RecordReader
from serving.events.log import EventLog
from serving.http.problems import render, status_of
from serving.monitoring.quality import LiveQuality
from serving.parts import Data
from serving.predict.inference import Inference
from serving.settings import Settings
from serving.shared.metrics import Metrics


def build_data(
    settings: Settings, registry: Registry, inference: Inference, events: EventLog, metrics: Metrics
) -> Data:
    """What keeps records and outcomes, and who is asked about them. Raises CannotServe."""
    source = data_source(settings)
    reader = RecordReader(source, settings.max_limit_checkins)
    predictor = EntityPredictor(registry, inference, reader, metrics, status_of)
    return Data(
        source,
        predictor,
        EntityNotifier(predictor, events, lambda error, request_id: render(error, request_id)[2]),
        OutcomeReader(registry, inference, max_instances=settings.max_instances),
        OutcomeWriter(source),
        LiveQuality(registry, source),
    )
