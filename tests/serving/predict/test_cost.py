"""What running a model costs, as it is learnt and as it is measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from registry.registry import load_registry
from serving.predict.cost import Cost, measure_inline_rows
from serving.predict.operation import Operation


def test_the_cost_of_a_batch_is_learnt_as_a_line() -> None:
    cost = Cost()
    assert cost.expect(10) == 0
    for count in (1, 64, 5, 200, 30):
        cost.learn(count, 0.004 + 0.00001 * count)
    assert cost.expect(1) == pytest.approx(0.00401)
    assert cost.expect(1000) == pytest.approx(0.014)


def test_batches_of_one_size_tell_that_more_rows_take_longer() -> None:
    cost = Cost()
    for _ in range(5):
        cost.learn(2, 0.1)
    assert cost.expect(1) == pytest.approx(0.05)
    assert cost.expect(20) == pytest.approx(1.0)


def learnt(fixed: float, each: float) -> Cost:
    cost = Cost()
    for count in (1, 2, 4, 8):
        cost.learn(count, fixed + each * count)
    return cost


def test_a_batch_has_as_many_rows_as_its_time_allows_and_never_none() -> None:
    assert Cost().batch_rows(0.025, 1024) == 1024, "nothing is known yet"
    cost = learnt(0.010, 0.001)
    assert cost.batch_rows(0.0255, 1024) == 15
    assert cost.batch_rows(0.0255, 10) == 10
    assert cost.batch_rows(0.001, 1024) == 1


def test_rows_are_not_kept_waiting_for_each_other_where_that_saves_nothing() -> None:
    assert learnt(0.0, 0.005).batch_rows(0.025, 1024) == 1
    assert learnt(0.001, 0.001).batch_rows(1.0, 1024) == 10


def test_larger_batches_are_tried_as_long_as_nothing_is_known_of_them() -> None:
    cost = Cost()
    for _ in range(5):
        cost.learn(1, 0.005)
    assert cost.batch_rows(0.025, 1024) == 2
    cost.learn(2, 0.0051)
    assert cost.batch_rows(0.025, 1024) > 100


def test_parts_of_divided_work_at_most_double_from_one_row_on() -> None:
    cost = Cost()
    sizes: list[int] = []
    while not sizes or sizes[-1] < 100:
        sizes.append(cost.rows_in(1.0, 100))
        cost.learn(sizes[-1], 0.001 * sizes[-1])
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 100]
    for _ in range(5):
        cost.learn(100, 10.0)
    assert cost.rows_in(1.0, 100) < 20, "it has become slower"
    assert cost.rows_in(0.0001, 100) == 1


def test_part_of_a_request_keeps_others_waiting_no_longer_than_helps() -> None:
    assert Cost().part_rows(0.025, 1024) == 1
    cost = learnt(0.0, 0.001)
    assert (cost.rows_in(0.0165, 1024), cost.part_rows(0.0165, 1024)) == (16, 1)


def test_only_compiled_models_run_on_the_loop(models: Path) -> None:
    compiled = load_registry(models).get("breast-cancer")
    assert compiled.compiled
    assert measure_inline_rows(Operation(compiled, "predict")) > 10
    assert measure_inline_rows(Operation(dataclasses.replace(compiled, compiled=False), "predict")) == 0


def test_quick_explanations_run_on_the_loop(models: Path) -> None:
    registry = load_registry(models)
    assert measure_inline_rows(Operation(registry.get("wine"), "explain")) > 1
