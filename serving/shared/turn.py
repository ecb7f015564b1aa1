"""What happens in one turn of an event loop, handed over together at its end: cheaper than one by one, and not late."""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turn(Generic[T]):
    """Collects items of a turn. Built before the fork; belongs to one event loop after it."""

    def __init__(self, take: Callable[[list[T]], None]) -> None:
        """`take` is called with the items of a turn, at least one."""
        self._take = take
        self._items: list[T] = []

    def add(self, item: T) -> None:
        """Have an item taken at the end of this turn."""
        if not self._items:
            get_running_loop().call_soon(self.end)
        self._items.append(item)

    def end(self) -> None:
        """Have all items taken now."""
        items, self._items = self._items, []
        if items:
            self._take(items)
