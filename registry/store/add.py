"""Makes a new version of a model from a fitted estimator and a table of its input."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import structlog
from sklearn.semi_supervised import LabelPropagation, LabelSpreading, SelfTrainingClassifier
from sklearn.utils.validation import check_is_fitted

from registry.asking import asking, estimator_compute, layout_of
from registry.completion import completed_by_sample
from registry.conformal import MAX_SCORES, conformal_scores
from registry.errors import CannotAdd, CannotRead, InvalidRows, VersionRefused, WrongOutputs, one_line
from registry.estimator import (
    Compute,
    Outputs,
    Task,
    input_names,
    last_step,
    libraries,
    library_of,
    task_of,
    with_categories,
)
from registry.explain.explanation import checked_groups, checked_labels
from registry.explain.shap_values import mean_contributions
from registry.formats.artefact import Artefact
from registry.formats.boosters import as_estimator
from registry.formats.pickles import survey_pickle
from registry.kernels.kernel import KNOWN_LIBRARIES
from registry.model import LoadedModel
from registry.outputs import Label, Labels, Layout
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema
from registry.store.code import CODE, OwnCode, dump_pickle, plain, write_files
from registry.store.description import most_important
from registry.store.directory import NAME, directories, version_order
from registry.store.distributions import describe
from registry.store.intake import Wishes, decide_schema, instances_of
from registry.store.loader import load_version
from registry.store.manifest import ExplainerRecord, Manifest, TrainingRecord, write_manifest
from registry.store.sources import Sources, collect_code
from registry.threads import in_one_thread
from registry.training.metrics import (
    BUILT_IN,
    MEASURED,
    Truth,
    custom_functions,
    measure,
    measure_custom,
    short_name,
    true_values,
)
from registry.training.script import Trained

log = structlog.get_logger(__name__)

CodeFor = Callable[[Iterable[str]], Mapping[str, bytes]]
"""From the names of classes and functions, as `Survey` has them, to own code by path."""

ARTEFACT = "model.joblib"
BACKGROUND_ROWS = 100
EXPECTED_ROWS = 20
SEMI_SUPERVISED = (LabelPropagation, LabelSpreading, SelfTrainingClassifier)

IMPORTANCE_SECONDS = 10.0
"""Once a slow explainer has taken this long, it explains no more background rows."""


def add_version(root: Path, name: str, estimator: Any, sample: pd.DataFrame, **options: Any) -> LoadedModel:
    """Write the next version of `name` below `root` and load it back as a server would.

    The options are the other fields of `Trained`. Raises CannotAdd, and then nothing is left behind.
    """
    with in_one_thread(estimator):
        return add_trained(root, name, Trained(estimator=estimator, sample=sample, **options))


def add_trained(
    root: Path,
    name: str,
    trained: Trained,
    *,
    version: str | None = None,
    training: TrainingRecord | None = None,
    trained_by: str = "",
    accepting: Sequence[Feature] = (),
    entities: bool | str = False,
) -> LoadedModel:
    """Write a version of `name` below `root`, the next one if none is given, and load it back as a server would.

    For `training`, `trained_by` and `entities`, which may also be their kind, see `Manifest`. The version also accepts
    the numbers that `accepting`, the features of another version, accept. Raises CannotAdd, and then nothing is left
    behind.
    """
    directory = new_directory(root, name, version)
    artefact = trained.artefact or pickled(trained.estimator, names=trained.metrics)
    trained = replace(trained, estimator=_adapted(trained))
    draft = _examine(trained, accepting)
    layout = _labelled(draft.layout, trained.labels)
    metrics = draft.measure(trained) | draft.measure_custom(trained, layout, artefact.code)
    background = _spread(draft.rows, BACKGROUND_ROWS)
    manifest = Manifest(
        name=name,
        version=directory.name,
        task=draft.task,
        estimator=_describe(trained.estimator),
        artefact=artefact.filename,
        artefact_format=artefact.format,
        sha256=hashlib.sha256(artefact.content).hexdigest(),
        fitted_with=artefact.fitted_with,
        trusted=artefact.trusted,
        forced=artefact.forced,
        code={name: hashlib.sha256(source).hexdigest() for name, source in artefact.code.items()},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        libraries=_library_versions(trained.estimator) | artefact.fitted_with,
        features=draft.schema.features,
        input=draft.schema.input,
        classes=() if layout.is_named else layout.targets[0].classes,
        outputs=layout.parts,
        targets=layout.targets if layout.is_named else (),
        conformal=draft.calibrate(trained),
        groups=checked_groups(trained.groups, draft.schema.names),
        feature_labels=checked_labels(trained.feature_labels, (*draft.schema.names, *trained.groups)),
        example=draft.schema.instance(background[len(background) // 2]),
        background=tuple(tuple(draft.schema.instance(row).values()) for row in background),
        expected=tuple(map(tuple, draft.compute(background[:EXPECTED_ROWS]).tolist())),
        baseline=_baseline(layout, draft.outputs),
        distributions=describe(draft.schema.features, draft.rows, layout, draft.outputs),
        metrics=metrics,
        custom_metrics=dict(trained.metrics),
        source=trained.source,
        training=training,
        trained_by=trained_by,
        entities=bool(entities),
        kind=entities if isinstance(entities, str) else "",
    )
    return _write(root, directory, manifest, artefact)


def next_version(directory: Path) -> str:
    """The number after the highest version in `directory`. Raises CannotAdd where the newest is not a number."""
    taken = [path.name for path in directories(directory)]
    newest = max((int(name) for name in taken if name.isdigit()), default=0)
    last = max(taken, key=version_order, default="0")
    if not last.isdigit():
        raise CannotAdd(f"{directory} has a version {last!r}, which is not a number; name the next one with --version")
    return str(newest + 1)


def new_directory(root: Path, name: str, version: str | None) -> Path:
    """The directory of the new version. Raises CannotAdd."""
    if not NAME.fullmatch(name):
        raise CannotAdd(f"{name!r} is not a model name: use letters, digits, '.', '_' and '-', at most 64")
    version = version or next_version(root / name)
    if not NAME.fullmatch(version):
        raise CannotAdd(f"{version!r} is not a version: use letters, digits, '.', '_' and '-', at most 64")
    directory = root / name / version
    if directory.exists():
        raise CannotAdd(f"{directory} already exists; a version never changes")
    return directory


@dataclass(frozen=True)
class _Draft:
    """An estimator, tried on its sample: `rows` of it, and the `outputs` for them."""

    task: Task
    columns: list[str]
    schema: Schema
    layout: Layout
    """Its classes are the estimator's own."""
    compute: Compute
    rows: Rows
    outputs: Outputs

    def measure(self, trained: Trained) -> dict[str, float]:
        """Metrics on the held-out rows, else on the sample; none without a target. Raises CannotAdd."""
        if len(trained.target_columns) != len(self.layout.targets) or self.task not in MEASURED:
            return {}
        truth, outputs = self._tried(trained)
        return measure(self.task, truth, outputs, self.layout)

    def measure_custom(self, trained: Trained, layout: Layout, code: Mapping[str, bytes]) -> dict[str, float]:
        """Metrics of the user's own, on the same rows; `layout` has the labels that are served. Raises CannotAdd."""
        if not trained.metrics:
            return {}
        if not trained.target_columns or self.task not in MEASURED:
            raise CannotAdd("a metric needs a target: name the column of true values")
        if layout.is_named:
            raise CannotAdd("a metric of your own needs a model with one output")
        for name in trained.metrics:
            if short_name(name) in BUILT_IN or [*map(short_name, trained.metrics)].count(short_name(name)) > 1:
                raise CannotAdd(f"there is another metric called {short_name(name)}; rename the function")
        truth, outputs = self._tried(trained)
        own = OwnCode.unpacked(code) if code else None
        try:
            return measure_custom(custom_functions(trained.metrics, own), truth, outputs, layout)
        finally:
            if own is not None:
                own.forget()

    def _tried(self, trained: Trained) -> tuple[Truth, Outputs]:
        """True values, and what the estimator answers. Raises CannotAdd."""
        columns = trained.target_columns
        table = labelled_rows(trained.sample if trained.held_out is None else trained.held_out, trained)
        rows, places = self.schema.fitting_rows(instances_of(table[self.columns]))
        if not places:
            raise CannotAdd("no held-out row fits the features")
        outputs = asking(trained.estimator, self.layout)(self.schema.table(rows))
        return true_values(table.iloc[places], columns, self.layout), outputs

    def calibrate(self, trained: Trained) -> tuple[float, ...]:
        """The scores of the calibration rows that the schema accepts, as requests would send them. Raises CannotAdd."""
        table, columns = trained.calibration, trained.target_columns
        if table is None:
            return ()
        if self.layout.is_named:
            raise CannotAdd("a model with several outputs cannot be calibrated")
        if len(columns) != 1 or self.task not in MEASURED:
            raise CannotAdd("calibration is for regressors and classifiers, and needs a target")
        if missing := [name for name in (*self.columns, *columns) if name not in table]:
            raise CannotAdd(f"the table of calibration rows has no column {missing[0]!r}")
        table = _spread_table(labelled_rows(table, trained), MAX_SCORES)
        rows, places = self.schema.fitting_rows(instances_of(table[self.columns]))
        if not places:
            raise CannotAdd("no calibration row fits the features")
        truth = true_values(table.iloc[places], columns, self.layout)[:, 0]
        return conformal_scores(self.compute(rows), truth, self.layout)


def _examine(trained: Trained, accepting: Sequence[Feature]) -> _Draft:
    """Infer the schema from the sample and predict all of it. Raises CannotAdd."""
    estimator = trained.estimator
    task = _checked_task(estimator)
    columns = _input_columns(estimator, trained.sample, _checked_targets(trained))
    table = with_categories(estimator, trained.sample[columns])
    schema = decide_schema(estimator, table, Wishes(options=trained.features, margin=trained.margin, before=accepting))
    try:
        # decoded as requests are, so that what is recorded here holds for them
        rows = schema.rows(instances_of(table))
        layout = layout_of(estimator, schema.table(rows[:1]))
        layout = _named(layout, trained)
        compute = estimator_compute(estimator, schema, layout)
        outputs = compute(rows)
    except InvalidRows as error:
        raise CannotAdd(f"the table does not fit its own features: {error.faults[0].reason}") from error
    except (CannotAdd, WrongOutputs) as error:
        raise CannotAdd(str(error)) from error
    except Exception as error:
        if schema.input == "array" and any(feature.kind == "category" for feature in schema.features):
            raise CannotAdd("the estimator takes numbers only, but the table has columns of text") from error
        raise CannotAdd(f"the estimator cannot predict this table: {type(error).__name__}: {error}") from error
    if not np.isfinite(outputs).all():
        raise CannotAdd("the estimator's output for this table is not finite")
    return _Draft(task, columns, schema, layout, compute, rows, outputs)


def _checked_task(estimator: Any) -> Task:
    task = task_of(estimator)
    if task is None:
        raise CannotAdd(f"{type(estimator).__name__} is not a scikit-learn estimator that predicts")
    try:
        if library_of(last_step(estimator)) in KNOWN_LIBRARIES:  # own code may have nothing to fit
            check_is_fitted(estimator)
    except Exception as error:
        raise CannotAdd(f"{type(estimator).__name__} is not fitted") from error
    if task == "classification" and not hasattr(estimator, "classes_"):
        raise CannotAdd(f"{type(estimator).__name__} has no classes_")
    return task


def _checked_targets(trained: Trained) -> list[str]:
    """The columns with true values. Raises CannotAdd where some but not all targets have one."""
    names = list(trained.targets)
    if names and trained.target is not None:
        raise CannotAdd("name either the target or the targets")
    if len(set(names)) != len(names) or not all(names):
        raise CannotAdd("each target must have a name of its own")
    missing = [name for name in names if name not in trained.sample]
    if missing and len(missing) != len(names):
        raise CannotAdd(f"the table has no column {missing[0]!r}")
    return trained.target_columns


def _named(layout: Layout, trained: Trained) -> Layout:
    """The layout with the names of its targets. Raises CannotAdd if these are not as many."""
    count, names = len(layout.targets), trained.targets
    if names and len(names) != count:
        raise CannotAdd(
            f"the estimator has {_counted(count, 'output')}, but {_counted(len(names), 'target')} are named"
        )
    if not layout.is_named or not names:
        return layout
    renamed = [msgspec.structs.replace(own, name=name) for own, name in zip(layout.targets, names, strict=True)]
    return dataclasses.replace(layout, targets=tuple(renamed))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _input_columns(estimator: Any, sample: pd.DataFrame, targets: Sequence[str]) -> list[str]:
    if sample.empty:
        raise CannotAdd("the table has no rows")
    if not sample.columns.is_unique:
        raise CannotAdd("the table has two columns of the same name")
    if missing := [name for name in targets if name not in sample]:
        hint = "; name several with --targets" if "," in missing[0] else ""
        raise CannotAdd(f"the table has no column {missing[0]!r}{hint}")
    expected = input_names(estimator, list(sample.columns))
    if expected is not None:
        missing = [name for name in expected if name not in sample]
        if missing:
            raise CannotAdd(f"the estimator was fitted on {', '.join(missing)}, which the table lacks")
        return expected
    columns = [column for column in sample.columns if column not in targets]
    count = getattr(estimator, "n_features_in_", len(columns))
    if len(columns) != count:
        raise CannotAdd(
            f"the estimator takes {count} features, the table has {len(columns)} columns besides the target; "
            "drop the other columns, or name the target column"
        )
    return columns


def labelled_rows(table: pd.DataFrame, trained: Trained) -> pd.DataFrame:
    """The rows whose true value is known: a semi-supervised estimator is given -1 for others."""
    estimator = trained.estimator
    while estimator is not None and not isinstance(estimator, SEMI_SUPERVISED):
        steps = getattr(estimator, "steps", None)
        estimator = steps[-1][1] if steps else getattr(estimator, "best_estimator_", None)
    return table if estimator is None or trained.target is None else table[table[trained.target] != -1]


def _spread_table(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, evenly spread."""
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(int))]


def _spread(rows: Rows, count: int) -> Rows:
    """At most `count` rows, evenly spread over the table."""
    chosen: Rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]
    return chosen


def _labelled(layout: Layout, labels: Sequence[Label]) -> Layout:
    """The layout with other labels for its classes. Raises CannotAdd where they do not fit."""
    for target in layout.targets:
        if len(set(Labels(target.classes).texts)) != len(target.classes):
            raise CannotAdd("two classes have the same label")
    if not labels:
        return layout
    if layout.is_named:
        raise CannotAdd("labels are for classifiers with one output")
    (target,) = layout.targets
    if len(labels) != len(target.classes):
        raise CannotAdd(f"there are {len(labels)} labels for {len(target.classes)} classes")
    return _labelled(Layout(layout.parts, (msgspec.structs.replace(target, classes=tuple(labels)),)), ())


def _baseline(layout: Layout, outputs: Outputs) -> tuple[float, ...]:
    """The mean output; of labels, which have no mean, the most frequent one."""
    means = outputs.mean(axis=0)
    for columns in layout.columns:
        if "label" in columns:
            found, counts = np.unique(outputs[:, columns["label"]], return_counts=True)
            means[columns["label"]] = found[counts.argmax()]
    return tuple(means.tolist())


def _record_explainer(model: LoadedModel) -> ExplainerRecord | None:
    explainer, manifest = model.explainer, model.manifest
    if explainer is None:
        return None
    background = model.background
    groups = model.names.shown()
    try:
        importance, count = mean_contributions(explainer, background, list(groups.values()), IMPORTANCE_SECONDS)
    except Exception as error:  # noqa: BLE001 - an estimator that breaks on rows mixed from others still predicts
        log.warning("Explainer not recorded", model=manifest.name, reason=f"{type(error).__name__}: {error}")
        return None
    if not np.isfinite(importance).all():
        log.warning("Explainer not recorded", model=manifest.name, reason="its values are not finite")
        return None
    explainers = (explainer, *model.other_explainers.values())
    return ExplainerRecord(
        method=explainer.method,
        space=explainer.space,
        importance=dict(zip(groups, importance, strict=True)),
        importance_rows=count,
        budgets={one.space: one.budget for one in explainers if one.budget is not None},
    )


def _describe(estimator: Any) -> str:
    steps = [step for _, step in getattr(estimator, "steps", None) or [("", estimator)]]
    # a booster's own class, not ours around it
    return " | ".join(type(getattr(step, "native_model", step)).__name__ for step in steps)


def _library_versions(estimator: Any) -> dict[str, str]:
    """Versions of Python, of our own libraries, and of those that the estimator and its steps come from."""
    distributions = ("scikit-learn", "numpy", "pandas", "joblib")
    versions = {name: importlib.metadata.version(name) for name in distributions}
    others = {name: getattr(sys.modules.get(name), "__version__", None) for name in libraries(estimator) - {"sklearn"}}
    return {
        "python": platform.python_version(),
        **versions,
        **{name: str(version) for name, version in sorted(others.items()) if version is not None},
    }


def _adapted(trained: Trained) -> Any:
    """The estimator with all that one of scikit-learn has. Raises CannotAdd."""
    targets = [name for name in trained.target_columns if name in trained.sample]
    truth = trained.sample[targets[0]] if len(targets) == 1 else None
    try:
        estimator = as_estimator(trained.estimator)
    except CannotRead as error:
        raise CannotAdd(f"the estimator {error}") from error
    made = completed_by_sample(estimator, trained.sample.drop(columns=targets), truth)
    if trained.labels and made is not estimator:
        raise CannotAdd(f"{type(estimator).__name__} has no classes_ that labels could be given to")
    return made


def pickled(estimator: Any, code_for: CodeFor | None = None, *, names: Iterable[str] = ()) -> Artefact:
    """The artefact of an estimator that is no file yet, with the own code of the names in it, and of other `names`.

    Raises CannotAdd.
    """
    try:
        content = dump_pickle(estimator)
    except Exception as error:
        reason = plain(f"{type(error).__name__}: {one_line(error)}")
        if "<lambda>" in reason:
            reason = "a lambda has no name that it could be found by; define a function with def"
        elif "<locals>" in reason:
            reason = f"{reason}; define it at the top level of a module, not inside a function"
        raise CannotAdd(f"the estimator cannot be pickled: {reason}") from error
    survey = survey_pickle(content)
    names = survey.names | set(names)
    code = collect_code(names, Sources.of_process()) if code_for is None else code_for(names)
    return Artefact(path=Path(ARTEFACT), content=content, format="joblib", filename=ARTEFACT, survey=survey, code=code)


def _write(root: Path, directory: Path, manifest: Manifest, artefact: Artefact) -> LoadedModel:
    """Write all of a version or nothing: in a scratch directory, loaded there as a server would, and then renamed."""
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    try:
        unnamed = scratch / manifest.name / manifest.version
        unnamed.mkdir(parents=True)
        (unnamed / manifest.artefact).write_bytes(artefact.content)
        write_files(unnamed / CODE, artefact.code)
        write_manifest(unnamed, manifest)
        explainer = _record_explainer(load_version(scratch, unnamed))
        described = most_important(manifest, explainer)
        write_manifest(unnamed, msgspec.structs.replace(manifest, explainer=explainer, distributions=described))
        directory.parent.mkdir(exist_ok=True)
        unnamed.rename(directory)
    except VersionRefused as error:
        raise CannotAdd(error.reason) from error
    except UnicodeEncodeError as error:
        raise CannotAdd("a label, a category or a column's name is no text that JSON can hold") from error
    finally:
        shutil.rmtree(scratch)
    return load_version(root, directory)
