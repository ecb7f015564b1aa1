"""Where records and outcomes are kept; apart from `data`, which imports models, for commands that need none."""

from __future__ import annotations

from serving.entities.building import build_source
from serving.entities.store import Source
from serving.settings import Settings


def data_source(settings: Settings) -> Source:
    """Where records and outcomes are kept. Raises CannotServe."""
    return build_source(
        settings.data_dir,
        settings.supabase_url,
        settings.supabase_key,
        keep_records=settings.max_records_per_entity,
        keep_outcomes=settings.max_outcomes_per_model,
        keep_in_all=settings.max_records,
    )
