"""Operations as other processes run them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from registry.explain.explanation import Selection
from registry.registry import load_registry
from registry.rows.features import Rows
from serving.predict.operation import Operation, Verb, decode_rows, encode_rows

NOISE = np.random.default_rng(0).normal(size=(1000, 50))
STRANGE = np.array([[np.nan, np.inf, -np.inf, -0.0, 5e-324]])


@pytest.mark.parametrize("rows", [STRANGE, np.empty((0, 3)), NOISE, NOISE[::2, ::-1], np.asfortranarray(NOISE)])
@pytest.mark.parametrize("selection", [Selection(), Selection("all", 3), Selection(("a", "b"))])
def test_rows_and_selection_cross_to_another_process_bit_for_bit(rows: Rows, selection: Selection) -> None:
    decoded, its_selection = decode_rows(encode_rows(rows, selection))
    assert (decoded.shape, decoded.tobytes(), its_selection) == (rows.shape, rows.tobytes(), selection)
    assert decoded.flags.writeable, "some estimators write to their input"


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_call_gives_the_answers_of_the_operation_as_an_array(models: Path, verb: Verb) -> None:
    model = load_registry(models).get("wine")
    operation, selection = Operation(model, verb), Selection(top=2)
    rows = model.schema.rows([list(row) for row in model.manifest.background[:3]])
    answers = msgspec.json.decode(operation.answer_call(encode_rows(rows, selection)), type=list[msgspec.Raw])
    assert [bytes(answer) for answer in answers] == operation.answer(rows, selection)
