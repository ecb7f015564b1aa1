"""The source of records and outcomes that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from serving.entities.sqlite import SQLiteSource
from serving.entities.store import Source
from serving.errors import CannotServe


def build_source(
    directory: Path, url: str, key: str, *, keep_records: int, keep_outcomes: int, keep_in_all: int
) -> Source:
    """In Supabase if there is one, else in a file below `directory`. Connects to nothing. Raises CannotServe."""
    if not url:
        return SQLiteSource(directory, keep_records=keep_records, keep_outcomes=keep_outcomes, keep_in_all=keep_in_all)
    # here and not above: it takes 40 MB; and before the fork, so that the workers share them
    try:
        from serving.entities.supabase import SupabaseSource
    except ImportError as error:
        raise CannotServe(f"SUPABASE_URL is set, which needs `pip install forkserve[supabase]`: {error}") from error
    return SupabaseSource(url, key, keep_records=keep_records, keep_outcomes=keep_outcomes)
