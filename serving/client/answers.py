"""What the service answers, as objects: predictions, explanations, models, jobs, records."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, overload

import msgspec

if TYPE_CHECKING:
    import pandas as pd

Label: TypeAlias = "str | int | float | bool"

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The prediction for one instance; what its kind of model does not answer is None or empty."""

    value: float | None = None
    """Of a regressor."""
    label: Label | None = None
    """Of a classifier, an outlier detector or a clusterer."""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """By class."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """By class, of a classifier without probabilities."""
    score: float | None = None
    """Of an outlier detector or a ranker."""
    interval: tuple[float, float] | None = None
    """Holds the true value as often as `coverage` asked for."""
    labels: tuple[Label, ...] | None = None
    """The set of labels that holds the true one as often as `coverage` asked for."""
    targets: Mapping[str, Prediction] = field(default_factory=dict)
    """The prediction of each target, of a model with several."""
    raw: Any = field(default=None, repr=False)
    """The prediction as the service sent it."""

    @classmethod
    def of(cls, raw: Any) -> Prediction:
        """The prediction that the service sent."""
        if not isinstance(raw, dict):
            return cls(value=raw, raw=raw)
        value = raw.get("prediction")
        if isinstance(value, dict):
            return cls(targets={name: cls.of(target) for name, target in value.items()}, raw=raw)
        interval, labels = raw.get("interval"), raw.get("set")
        return cls(
            value=value,
            label=raw.get("label"),
            probabilities=raw.get("probabilities", {}),
            margins=raw.get("margins", {}),
            score=raw.get("score"),
            interval=None if interval is None else (interval[0], interval[1]),
            labels=None if labels is None else tuple(labels),
            raw=raw,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """SHAP values of one instance: `base_value` and all `values` add up to `output`.

    Of several classes or targets, each has an explanation of its own below `classes` or `targets`.
    """

    output: float | None = None
    base_value: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    """By feature; `(other)` is the sum of those that `top` left out."""
    label: Label | None = None
    space: str = ""
    """`probability`, `margin` or `value`."""
    method: str = ""
    standard_error: Mapping[str, float] = field(default_factory=dict)
    """By feature, if the values were sampled."""
    words: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each word of a text contributes, by feature."""
    interactions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By feature and feature, if they were asked for: those of a feature add up to its value."""
    classes: Mapping[str, Explanation] = field(default_factory=dict)
    targets: Mapping[str, Explanation] = field(default_factory=dict)
    raw: Any = field(default=None, repr=False)
    """The explanation as the service sent it."""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Explanation:
        """The explanation that the service sent."""
        own = {name: raw[name] for name in EXPLAINED if name in raw}
        for name in ("classes", "targets"):
            own[name] = {key: cls.of(inner) for key, inner in raw.get(name, {}).items()}
        return cls(**own, raw=raw)


EXPLAINED = ("output", "base_value", "values", "label", "space", "method", "standard_error", "words", "interactions")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSequence(Sequence[Item], Generic[Item]):
    """One item for each instance of a request, in order, and what the service says of the answer as a whole."""

    model: str
    version: str
    raw: Sequence[Any] = field(repr=False)
    """The items as the service sent them."""
    request_id: str = ""
    cache: str = ""
    """Where the answer came from: `hit-memory`, `hit-redis`, `miss`, `coalesced` or `mixed`; empty if hidden."""
    fallback: bool = False
    """Whether a fallback model answered."""
    forced: str = ""
    """Why the model should not be relied on, if it was added by force."""
    index: Any = field(default=None, repr=False)
    """The index of the DataFrame that was sent, or the times of records."""

    def _item(self, raw: Any) -> Item:
        raise NotImplementedError

    def _rows(self, raw: Any) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, position: int) -> Item: ...
    @overload
    def __getitem__(self, position: slice) -> list[Item]: ...
    def __getitem__(self, position: int | slice) -> Item | list[Item]:
        if isinstance(position, slice):
            return [self._item(raw) for raw in self.raw[position]]
        return self._item(self.raw[position])

    def to_frame(self) -> pd.DataFrame:
        """The answers as a DataFrame, with the index of the DataFrame that was sent."""
        import pandas as pd  # imported here: most callers need no table

        rows, places = [], []
        for place, raw in enumerate(self.raw):
            for row in self._rows(raw):
                rows.append(row)
                places.append(place)
        index = pd.RangeIndex(len(self.raw)) if self.index is None else pd.Index(self.index)
        return pd.DataFrame(rows, index=index.take(places))


class Predictions(AnswerSequence[Prediction]):
    """The predictions for the instances of a request, in order."""

    __slots__ = ()

    def _item(self, raw: Any) -> Prediction:
        return Prediction.of(raw)

    def _rows(self, raw: Any) -> Iterator[dict[str, Any]]:
        yield dict(_prediction_cells(Prediction.of(raw), ""))

    @property
    def values(self) -> list[float | None]:
        """The numbers that a regressor predicts."""
        return [prediction.value for prediction in self]

    @property
    def labels(self) -> list[Label | None]:
        """The labels that a classifier predicts."""
        return [prediction.label for prediction in self]


class Explanations(AnswerSequence[Explanation]):
    """The explanations of the instances of a request, in order."""

    __slots__ = ()

    def _item(self, raw: Any) -> Explanation:
        return Explanation.of(raw)

    def _rows(self, raw: Any) -> Iterator[dict[str, Any]]:
        """A row for each target and class that is explained."""
        for target, explained in raw.get("targets", {"": raw}).items():
            for label, item in explained.get("classes", {explained.get("label"): explained}).items():
                head = ({"target": target} if target else {}) | ({} if label is None else {"class": label})
                yield {**head, "output": item["output"], "base_value": item["base_value"], **item["values"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureImportance:
    """How much the features of a model matter over some rows: the mean of |SHAP|, the largest first."""

    model: str
    version: str
    rows: int
    importance: Mapping[str, float]
    """By feature; of several classes or targets, the mean over them."""
    outputs: Sequence[Mapping[str, Any]] = field(repr=False)
    """Each target and class as the service sent it: `importance`, `mean`, `base_value`, `points`, `dependence`."""
    space: str = ""
    method: str = ""
    fallback: bool = False
    forced: str = ""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> FeatureImportance:
        """The importance that the service sent."""
        return cls(**{name: document[name] for name in cls.__dataclass_fields__ if name in document})

    def to_frame(self) -> pd.DataFrame:
        """A row for each target, class and feature, named as in the CSV of a job."""
        import pandas as pd  # imported here: most callers need no table

        rows = []
        for output in self.outputs:
            head = {name: output[name] for name in ("target", "class") if name in output}
            for feature, value in output["importance"].items():
                rows.append(head | {"feature": feature, "importance": value, "mean": output["mean"].get(feature)})
        return pd.DataFrame(rows)


def _prediction_cells(prediction: Prediction, prefix: str) -> Iterator[tuple[str, Any]]:
    """The columns of one prediction, named as in the CSV of a job."""
    for name, target in prediction.targets.items():
        yield from _prediction_cells(target, f"{name} ")
    if prediction.value is not None:
        yield f"{prefix}prediction", prediction.value
    if prediction.interval is not None:
        yield f"{prefix}low", prediction.interval[0]
        yield f"{prefix}high", prediction.interval[1]
    if prediction.label is not None:
        yield f"{prefix}label", prediction.label
    if prediction.score is not None:
        yield f"{prefix}score", prediction.score
    for label, margin in prediction.margins.items():
        yield f"{prefix}margin of {label}", margin
    for label, probability in prediction.probabilities.items():
        yield f"{prefix}probability of {label}", probability
    if prediction.labels is not None:
        yield f"{prefix}set", list(prediction.labels)


class ExplainerDescription(msgspec.Struct, frozen=True):
    """How a model is explained."""

    method: str
    space: str
    jobs_only: bool = False
    """Whether one explanation takes longer than a request may."""
    spaces: list[str] = []


class ModelDescription(msgspec.Struct, frozen=True):
    """A version of a model. `models()` leaves out what stands below `explainer`."""

    name: str
    version: str
    live: str = ""
    """The version that answers requests which name none."""
    previous: str | None = None
    versions: list[str] = []
    task: str = ""
    estimator: str = ""
    compiled: bool = False
    fallback: bool = False
    forced: str = ""
    entities: bool = False
    """Whether it predicts for records of entities."""
    kind: str | None = None
    explainer: ExplainerDescription | None = None
    features: list[str] = []
    """In the order of lists and arrays."""
    classes: list[Any] = []
    metrics: dict[str, float] = {}
    example: dict[str, Any] | None = None
    schema: dict[str, Any] = {}
    """JSON Schema of an instance."""
    sha256: str = ""
    created: str = ""


class HealthReport(msgspec.Struct, frozen=True):
    """How a service is; `degraded` means that it answers, but not as it should."""

    status: Literal["ok", "degraded"]
    models: int = 0
    fallbacks: list[str] = []
    forced: dict[str, str] = {}
    refused: list[str] = []
    jobs: str = ""
    records: str = ""
    reasons: dict[str, str] = {}
    last_training: dict[str, Any] = {}
    breakers: dict[str, str] = {}
    memory: dict[str, Any] = {}


class JobStatus(msgspec.Struct, frozen=True):
    """A job as it was when the service answered."""

    id: str
    operation: str
    model: str
    version: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    created: datetime.datetime
    progress: float = 0.0
    """From 0 to 1."""
    attempts: int = 0
    chunks: int = 0
    chunks_done: int = 0
    started: datetime.datetime | None = None
    finished: datetime.datetime | None = None
    error: str = ""
    cancelling: bool = False

    @property
    def is_finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class MissingPrediction(msgspec.Struct, frozen=True):
    """A prediction that is not in the log, or is somebody else's."""

    request_id: str
    instance: int | None = None


class Stored(msgspec.Struct, frozen=True):
    """What became of records or outcomes: `present` ones were there before, `dropped` ones are too old to be kept."""

    stored: int = 0
    present: int = 0
    dropped: int = 0
    ids: list[str] = []
    """Of records, in order."""
    version: str = ""
    """Of outcomes: the version whose quality they measure; empty if there are several."""
    missing: list[MissingPrediction] = []
    """Of outcomes by request id: those whose predictions are not in the log; their outcomes are not stored."""
    incomplete: int = 0
    """Of outcomes by request id: how many of their rows were logged without some columns."""


class EntityDescription(msgspec.Struct, frozen=True):
    """An entity that has records."""

    entity: str
    kind: str = ""
    records: int = 0
    newest: datetime.datetime | None = None


class StoredRecord(msgspec.Struct, frozen=True):
    """The values of an entity at a time."""

    id: str
    time: datetime.datetime
    values: dict[str, Any] = {}


class DeletedCounts(msgspec.Struct, frozen=True):
    """How much was deleted."""

    records: int = 0
    outcomes: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityForecast:
    """The predictions of all models for the newest records of an entity, newest first."""

    entity: str
    stale: bool
    """Whether the records come from memory, because their store is unavailable."""
    records: Sequence[StoredRecord]
    predictions: Mapping[str, Predictions]
    """By model; each in the order of the records."""
    explanations: Mapping[str, Explanations]


def answers_of(
    document: Mapping[str, Any], headers: Mapping[str, str], index: Any = None
) -> Predictions | Explanations:
    """The predictions or explanations of a request or a job."""
    items = "predictions" if "predictions" in document else "explanations"
    kind: type[Predictions | Explanations] = Predictions if items == "predictions" else Explanations
    return kind(
        model=document["model"],
        version=document["version"],
        raw=document[items],
        request_id=headers.get("x-request-id", ""),
        cache=headers.get("x-cache", ""),
        fallback=bool(document.get("fallback", False)),
        forced=document.get("forced", ""),
        index=index,
    )


def forecast_of(document: Mapping[str, Any]) -> EntityForecast:
    """The answer about an entity."""
    records = msgspec.convert(document["records"], list[StoredRecord])
    times = [record.time for record in records]
    predictions: dict[str, Predictions] = {}
    explanations: dict[str, Explanations] = {}
    for model in document["models"]:
        about = {
            "model": model["model"],
            "version": model["version"],
            "forced": model.get("forced", ""),
            "index": times,
        }
        predictions[model["model"]] = Predictions(**about, raw=model["predictions"])
        if "explanations" in model:
            explanations[model["model"]] = Explanations(**about, raw=model["explanations"])
    return EntityForecast(
        entity=document["entity"],
        stale=document["stale"],
        records=records,
        predictions=predictions,
        explanations=explanations,
    )
