"""The answers of a compiled estimator, by scikit-learn's methods, and the outputs that they make for a layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier

from registry.asking import layout_of
from registry.estimator import Compute
from registry.kernels.columns import Computed
from registry.kernels.kernel import Unsupported
from registry.kernels.matrix import Matrix
from registry.kernels.transformers import source_matrix
from registry.outputs import Layout, Part
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema

Answer = Callable[[Rows], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Functions of rows, shape (rows, features), that answer as an estimator's methods do; None for one that it lacks.

    `values` is `predict` of a regressor, shape (rows,) or (rows, targets). `labels` is that of a classifier: indices
    among its classes, -1 for a row that it refuses; of a clusterer or outlier detector the labels themselves.
    `probabilities` are those of all classes, a list of such arrays for several targets. `margins` is
    `decision_function`. `outputs` is all that the estimator's layout asks for, where one call makes it. `single` tells
    that its numbers are float32. `python` names the estimators whose own code runs, `reason` tells why.
    """

    values: Answer | None = None
    labels: Answer | None = None
    probabilities: Answer | None = None
    margins: Answer | None = None
    outputs: Compute | None = None
    single: bool = False
    python: tuple[str, ...] = ()
    reason: str = ""

    def behind(self, matrix: Callable[[Rows], Rows], most: int | None = None) -> Answers:
        """The answers to rows whose matrix is asked about, that of at most so many rows at once."""

        def of_rows(answer: Answer | None) -> Answer | None:
            if answer is None or most is None:
                return None if answer is None else lambda rows: answer(matrix(rows))

            def in_parts(rows: Rows) -> Any:
                starts = range(0, max(1, len(rows)), most)
                parts = [answer(matrix(rows[start : start + most])) for start in starts]
                if isinstance(parts[0], list):
                    return [np.concatenate(of_target) for of_target in zip(*parts, strict=True)]
                return np.concatenate(parts)

            return in_parts

        return replace(
            self,
            values=of_rows(self.values),
            labels=of_rows(self.labels),
            probabilities=of_rows(self.probabilities),
            margins=of_rows(self.margins),
            outputs=of_rows(self.outputs),
        )

    def compute(self, layout: Layout) -> Compute:
        """A function from rows to the outputs of a layout. Raises Unsupported."""
        if self.outputs is not None:
            return self.outputs
        answers = [self._part(part, classifies=bool(layout.targets[0].classes)) for part in layout.parts]
        if len(layout.targets) > 1:
            return _of_targets(answers, len(layout.targets))
        return lambda rows: np.hstack([_columns(answer(rows), len(rows)) for answer in answers])

    def _part(self, part: Part, *, classifies: bool) -> Answer:
        found = {
            "value": self.values,
            "label": _refusing(self.labels) if classifies else self.labels,
            "probabilities": self.probabilities,
            "margins": self.margins,
            "score": self.margins,
        }[part]
        if found is None:
            raise Unsupported(f"its {part} have no compiled form")
        return found


def _refusing(labels: Answer | None) -> Answer | None:
    """Labels that are NaN for a row that is refused."""

    def refusing(rows: Rows) -> Rows:
        indices = needed(labels)(rows)
        return np.where(np.less(indices, 0), np.nan, indices)

    return None if labels is None else refusing


def _columns(answer: Any, rows: int) -> Rows:
    return np.asarray(answer, np.float64).reshape(rows, -1)


def _of_targets(answers: Sequence[Answer], targets: int) -> Compute:
    """Outputs in which the parts of one target follow those of another."""

    def compute(rows: Rows) -> Rows:
        made = [answer(rows) for answer in answers]
        by_part = [own if isinstance(own, list) else np.asarray(own, np.float64).T for own in made]
        return np.hstack([_columns(own[target], len(rows)) for target in range(targets) for own in by_part])

    return compute


def most_probable(probabilities: Answer, margins: Answer | None = None) -> Answers:
    """The answers of a classifier that predicts the first of its most probable classes."""

    def outputs(rows: Rows) -> Rows:
        shares = np.asarray(probabilities(rows), np.float64)
        labels = np.where(np.isnan(shares[:, 0]), np.nan, shares.argmax(axis=1))
        return np.column_stack([shares, labels])

    return Answers(labels=_indices(probabilities), probabilities=probabilities, margins=margins, outputs=outputs)


def label_places(own: Any, classes: Any) -> NDArray[np.intp]:
    """The places of a member's classes among those of the whole. Raises Unsupported."""
    places = {label: place for place, label in enumerate(np.asarray(classes).tolist())}
    try:
        return np.array([places[label] for label in np.asarray(own).tolist()], np.intp)
    except KeyError as error:
        raise Unsupported(f"a member's class {error} is none of the classes") from None


@dataclass(frozen=True, slots=True)
class Members:
    """The members of an estimator that is fed the columns of a matrix; `compiled` compiles one, or raises Unsupported.

    A member without a compiled form answers with its own code.
    """

    matrix: Matrix
    compiled: Callable[[Any, Matrix], Answers]
    asked: list[Answers] = field(default_factory=list)

    def ask(self, member: Any, columns: Sequence[int] | None = None) -> Answers:
        """The answers of a member that sees all columns, or some."""
        return self._ask(member, self.matrix if columns is None else selected(self.matrix, columns))

    def _ask(self, member: Any, matrix: Matrix) -> Answers:
        try:
            answers = self.compiled(member, matrix)
        except Unsupported as error:
            answers = python_answers(member, matrix, str(error))
        self.asked.append(answers)
        return answers

    def all(self, members: Sequence[Any]) -> list[Answers]:
        """The answers of members that see all columns."""
        return [self.ask(member) for member in members]

    def ask_about_numbers(self, member: Any, width: int) -> Answers:
        """The answers of a member that is not fed the rows, but other numbers, shape (rows, width)."""
        return self._ask(member, number_matrix(width))

    def ask_about_single_numbers(self, member: Any, width: int) -> Answers:
        """The answers of a member that is fed float32, and computes with it in its own code."""
        answers = python_answers(member, number_matrix(width), "it is fed float32")
        self.asked.append(answers)
        return answers

    @property
    def width(self) -> int:
        """The number of columns, where they are the rows themselves. Raises Unsupported."""
        if self.matrix.columns != tuple(map(Computed, range(len(self.matrix.schema)))):
            raise Unsupported("a member is fed the columns beside predictions, and they are not all numbers")
        return len(self.matrix.columns)


def label_values(member: Answers, estimator: Any) -> Answer:
    """The labels of a classifier whose classes are numbers, as numbers, NaN for a refused row. Raises Unsupported."""
    classes, labels = np.asarray(estimator.classes_), needed(member.labels)
    if classes.dtype.kind not in "biuf":
        raise Unsupported("a member hands on labels that are not numbers")
    values = np.append(classes.astype(np.float64), np.nan)  # at -1
    return lambda rows: values[labels(rows)]


def refusing(answers: Answers, feed: Callable[[Rows], Rows], refused: Callable[[Rows], Any]) -> Answers:
    """The answers about what `feed` makes of rows, and none for those of which `refused` is true."""

    def of(answer: Answer | None, nothing: float) -> Answer | None:
        def ask(rows: Rows) -> Any:
            fed = feed(rows)
            found, lost = needed(answer)(fed), refused(fed)
            if lost.any():
                found = np.array(found)
                found[lost] = nothing
            return found

        return None if answer is None else ask

    return replace(
        answers,
        values=of(answers.values, np.nan),
        labels=of(answers.labels, -1),
        probabilities=of(answers.probabilities, np.nan),
        margins=of(answers.margins, np.nan),
        outputs=None,
    )


def side_by_side(answers: Sequence[Answer], rows: Rows) -> Rows:
    """One column an answer, shape (rows, answers), in the order of memory that a single row has."""
    return np.ascontiguousarray(np.asarray([answer(rows) for answer in answers]).T)


def needed(answer: Answer | None) -> Answer:
    """An answer that there must be. Raises Unsupported."""
    if answer is None:
        raise Unsupported("a member lacks a method that is asked for")
    return answer


def with_python(answers: Answers, members: Sequence[Answers]) -> Answers:
    """The answers of a whole, which run Python code if those of a member do."""
    return replace(answers, python=tuple(name for member in members for name in member.python))


def positive(member: Answers) -> Answer:
    """The margin of a binary classifier's second class, else its probability."""
    if member.margins is not None:
        margins = member.margins
        return lambda rows: np.ravel(margins(rows))
    probabilities = needed(member.probabilities)
    return lambda rows: probabilities(rows)[:, 1]


def selected(matrix: Matrix, columns: Sequence[int]) -> Matrix:
    """Some columns of a matrix, by their places; scikit-learn selects them from an array."""
    before = matrix.made
    chosen = tuple(matrix.columns[index] for index in columns)
    return replace(matrix, columns=chosen, made=lambda table: np.asarray(before(table))[:, columns])


def number_matrix(width: int, *, sparse: bool = False) -> Matrix:
    """A matrix whose rows are numbers already; `sparse` if scikit-learn keeps them in a sparse matrix."""
    features = [Feature(name=f"x{index}", kind="number", nullable=True) for index in range(width)]
    return replace(source_matrix(Schema(features)), sparse=sparse)


def combined(combine: Callable[[Any, Members], Answers], estimator: Any, members: Members) -> Answers:
    """The answers of an estimator that is made of members. Raises Unsupported where these are all Python."""
    answers = combine(estimator, members)
    if members.asked and all(member.reason for member in members.asked):
        raise Unsupported(members.asked[0].reason)
    return answers


def python_answers(estimator: Any, matrix: Matrix, reason: str) -> Answers:
    """The answers of an estimator by its own code. Raises Unsupported where it cannot be fed the matrix as it was."""
    if matrix.sparse or (matrix.schema.input == "array" and hasattr(estimator, "feature_names_in_")):
        raise Unsupported(reason)
    made, schema = matrix.made, matrix.schema

    def asking(name: str) -> Answer | None:
        method = getattr(estimator, name, None)
        return None if method is None else lambda rows: method(made(schema.table(rows)))

    values = asking("predict")
    answers = Answers(python=(type(estimator).__name__,), reason=reason)
    if not is_classifier(estimator) or values is None:
        return replace(answers, values=values)
    classes = np.asarray(estimator.classes_)
    order = np.argsort(classes)
    ordered = classes[order]
    return replace(
        answers,
        labels=lambda rows: order[np.searchsorted(ordered, values(rows))],
        probabilities=asking("predict_proba"),
        margins=asking("decision_function"),
    )


def answers_in(outputs: Compute, estimator: Any, margins: Answer | None, *, single: bool = False) -> Answers:
    """The answers that are in the outputs of an estimator with one target; `single` if it answers float32 itself."""
    if getattr(estimator, "n_outputs_", 1) > 1 and not hasattr(estimator, "coefs_"):  # a network's are its last layer's
        return Answers(outputs=outputs, values=None if is_classifier(estimator) else outputs)
    places = layout_of(estimator).columns[0]

    def part(name: Part) -> Answer | None:
        place = places.get(name)
        if place is None:
            return None
        if single and name != "label":
            return lambda rows: outputs(rows)[:, place].astype(np.float32)
        return lambda rows: outputs(rows)[:, place]

    values, labels, probabilities = part("value"), part("label"), part("probabilities")
    return Answers(
        values=None if values is None else lambda rows: values(rows)[:, 0],
        labels=_indices(labels or probabilities),
        probabilities=probabilities,
        margins=margins,
        outputs=outputs,
        single=single,
    )


def _indices(answer: Answer | None) -> Answer | None:
    """Labels as indices: a column of them, or the first of the most probable classes; -1 where the row is refused."""
    if answer is None:
        return None

    def labels(rows: Rows) -> Any:
        found = answer(rows)
        refused = np.isnan(found[:, -1])
        indices = np.where(refused, -1, found[:, 0]).astype(np.intp) if found.shape[1] == 1 else found.argmax(axis=1)
        indices[refused] = -1
        return indices

    return labels
