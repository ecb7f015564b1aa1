"""How much an explainer that asks the model again and again may ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """`evaluations` of coalitions a row, each over all background rows; `seconds` that a request may wait for a row."""

    evaluations: int = 500
    seconds: float = 1.0
