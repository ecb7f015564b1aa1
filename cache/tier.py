"""What every place that keeps bytes can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from serving.storage.guard import BreakerState


class Tier(Protocol):
    """Bytes kept under keys for a while.

    None always means "not here", whatever the reason; no method raises because a server is away. What is kept under a
    key never changes its meaning, so nothing is ever invalidated, only forgotten.
    """

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value a key, in the order of the keys."""
        ...

    async def put_many(self, items: Mapping[bytes, bytes]) -> None:
        """Keep the items if there is room; nothing is promised."""
        ...

    async def close(self) -> None:
        """Let go of what the tier holds. It may be used again after it."""
        ...


class RemoteTier(Tier, Protocol):
    """A tier behind a network, which may be away."""

    @property
    def state(self) -> BreakerState:
        """Of its breaker; "closed" is the good one."""
        ...
