"""Many small cases in one test: those that fail are named together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

Case = Callable[[object], AbstractContextManager[None]]


@contextmanager
def cases() -> Iterator[Case]:
    """Gives a context for each case, which takes the name of the case; at the end the failed cases fail the test."""
    failed: list[str] = []

    @contextmanager
    def case(name: object) -> Iterator[None]:
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever it is, the next case is tried
            failed.append(f"{name!r:.100}: {type(error).__name__}: {error!s:.500}")

    yield case
    assert failed == [], "\n".join(failed)
