"""What importance and interactions cost, on one core and without HTTP: `python -m bench.importance`.

A forest of 100 trees of depth 12 over 30 features: one explanation, one with its interactions beside shap's, and 500
rows explained as JSON and summed up, as a job over them does. Milliseconds, the best of several rounds.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from serving.process.child import limit_numeric_threads

limit_numeric_threads(os.environ)

import msgspec  # noqa: E402
import numpy as np  # noqa: E402 - numpy counts the threads it may have when it is imported
import shap  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402

from bench.explain import milliseconds  # noqa: E402
from bench.models import forest_of_100  # noqa: E402
from bench.table import Table  # noqa: E402
from registry.explain.explanation import Selection  # noqa: E402
from registry.explain.importance import Importance  # noqa: E402
from registry.model import LoadedModel  # noqa: E402
from registry.rows.features import Rows  # noqa: E402
from registry.store.add import add_version  # noqa: E402
from serving.predict.operation import Operation  # noqa: E402

ROWS = 500
SECONDS = 2.0


def sum_up(model: LoadedModel, rows: Rows) -> None:
    """The importance of features over rows, from their explanations as JSON."""
    answers = Operation(model, "explain").answer(rows, Selection("all"))
    summed = Importance(model.manifest.features, len(rows), detail="rows")
    summed.add([msgspec.json.decode(answer) for answer in answers], rows)
    msgspec.json.encode(summed.result())


def main() -> None:
    table, target = forest_of_100()
    forest = RandomForestClassifier(100, max_depth=12, random_state=0).fit(table, target)
    with tempfile.TemporaryDirectory() as root:
        model = add_version(Path(root), "forest", forest, table.iloc[:ROWS])
    rows = model.schema.rows(table.iloc[:ROWS].to_numpy().tolist())
    one, theirs = rows[:1], shap.TreeExplainer(forest)
    plain, pairs = Selection("all"), Selection("all", interactions=True)
    explain, interact = Operation(model, "explain"), Operation(model, "explain", interactions=True)
    assert model.explainer is not None
    assert model.explainer.interact is not None
    ours = model.contributions(one).with_interactions(model.explainer.interact(one)).interactions
    apart = np.abs(np.asarray(ours) - theirs.shap_interaction_values(one)).max()
    speed = Table("what", "rows", "ms", "shap (ms)", "max difference")
    speed.add("explanation", 1, f"{milliseconds(lambda: explain.answer(one, plain), SECONDS):.2f}", "", "")
    slow = milliseconds(lambda: theirs.shap_interaction_values(one), SECONDS)
    quick = milliseconds(lambda: interact.answer(one, pairs), SECONDS)
    speed.add("interactions", 1, f"{quick:.2f}", f"{slow:.1f}", f"{apart:.0e}")
    speed.add("importance", ROWS, f"{milliseconds(lambda: sum_up(model, rows), SECONDS):.0f}", "", "")
    print(speed)


if __name__ == "__main__":
    main()
