"""Inference over rows that stand for letters, and a model that the test holds in its hand."""

from __future__ import annotations

import asyncio
from collections.abc import MutableSequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from cache.flight import Answer
from cache.memory import MemoryTier, Stats
from cache.redis import RedisTier
from cache.tiered import TieredCache
from registry.registry import load_registry
from registry.rows.features import Rows
from serving.predict.batcher import Batcher, BatchResult
from serving.predict.inference import Inference
from serving.process.executor import Executor

FEATURES = 10


def rows_of(letters: str) -> Rows:
    return np.tile(np.array([float(ord(letter)) for letter in letters])[:, None], (1, FEATURES))


class LetterBatcher:
    """In the place of a Batcher: answers letters with capitals while its gate is open, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: MutableSequence[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.quick = False
        self.rows_in_a_part = 1

    def prepare(self, *_: Any) -> None: ...

    def is_quick(self, *_: Any) -> bool:
        return self.quick

    def part_rows(self, *_: Any) -> int:
        return self.rows_in_a_part

    async def run(self, _operation: Any, rows: Rows, *_: Any, **_options: Any) -> BatchResult:
        letters = "".join(chr(int(row[0])) for row in rows)
        self.asked.append(letters)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return BatchResult([letter.upper().encode() for letter in letters], 0.001)


class Letters:
    """Inference over `models`, with memory in front of `remote`, and its model."""

    def __init__(self, models: Path, remote: RedisTier | None = None, *, max_items: int = 100) -> None:
        registry = load_registry(models)
        stats = Stats()
        memory = MemoryTier(max_items=max_items, max_bytes=1 << 20, ttl_seconds=60, stats=stats)
        self.cache = TieredCache(memory, remote, stats=stats)
        self.batcher = LetterBatcher()
        self.diabetes = registry.get("diabetes")
        self.inference = Inference(
            registry,
            batcher=cast("Batcher", self.batcher),
            executor=Executor({}),
            cache=self.cache,
            timeout=60.0,
        )
        self.inference.prepare()

    async def ask(self, letters: str) -> list[Answer]:
        return await self.inference.answer(self.diabetes, "predict", rows_of(letters))

    def start(self, letters: str) -> asyncio.Task[list[Answer]]:
        return asyncio.create_task(self.ask(letters))
