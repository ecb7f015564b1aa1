"""shap's own TreeExplainer: for tree ensembles that the kernel does not take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from registry.estimator import Compute
from registry.explain.library import CannotExplain, import_shap
from registry.explain.shap_values import Contributions, Method, Space, both_classes
from registry.rows.features import Rows


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceExplainer:
    """Explains what shap explains, exactly and path-dependently, too. Holds the GIL for the whole call."""

    space: Space
    function: Compute
    library: Any
    base_values: Rows
    method: Method = field(default="tree-path-dependent", init=False)
    tolerance: float = field(default=1e-6, init=False)
    in_process: bool = field(default=False, init=False)
    jobs_only: bool = field(default=False, init=False)
    evaluations: int = field(default=0, init=False)

    def explain(self, rows: Rows) -> Contributions:
        """What each feature contributes to each output."""
        # shap sums trees in an order of its own for several rows
        values = np.stack([np.asarray(self.library.shap_values(row[None], check_additivity=False))[0] for row in rows])
        values = values.reshape(*rows.shape, -1)
        outputs = self.function(rows)
        if outputs.shape[1] == 2 and values.shape[2] == 1:  # margins of a binary classifier
            return both_classes(Contributions(outputs[:, 1:], self.base_values, values), 0.0)
        return Contributions(outputs, self.base_values, values)


def reference_explainer(estimator: Any, function: Compute, space: Space) -> ReferenceExplainer:
    """The explainer of a tree ensemble that is asked with the rows as they are. Raises CannotExplain."""
    shap = import_shap()
    try:
        library = shap.TreeExplainer(estimator)
    except Exception as error:
        raise CannotExplain(f"shap does not take it: {type(error).__name__}: {error}") from error
    base_values = np.ravel(np.asarray(library.expected_value, np.float64))
    return ReferenceExplainer(space, function, library, base_values)
