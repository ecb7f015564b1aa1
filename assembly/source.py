"""Where records and outcomes are kept; apart from `data`, which imports models, for commands that need none."""

from __future__ import annotations

from serving.entities.sqlite import SQLiteEntityStore
from serving.entities.store import EntityStore
from serving.errors import CannotServe
from serving.settings import Settings


def data_source(settings: Settings) -> EntityStore:
    """In Supabase if there is one, else in a file of DATA_DIR. Connects to nothing. Raises CannotServe."""
    if not settings.supabase_url:
        return SQLiteEntityStore(
            settings.data_dir,
            keep_records=settings.max_records_per_entity,
            keep_outcomes=settings.max_outcomes_per_model,
            keep_in_all=settings.max_records,
        )
    # here and not above: it takes 40 MB; and before the fork, so that the workers share them
    try:
        from serving.entities.supabase import SupabaseEntityStore
    except ImportError as error:
        raise CannotServe(f"SUPABASE_URL is set, which needs `pip install forkserve[supabase]`: {error}") from error
    return SupabaseEntityStore(
        settings.supabase_url,
        settings.supabase_key,
        keep_records=settings.max_records_per_entity,
        keep_outcomes=settings.max_outcomes_per_model,
    )
