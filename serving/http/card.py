"""The card of a model: what it was made of, what it takes, how good it is, its limits, and what was done to it.

`make_card` says it all once, as JSON. `sections` lays it out for people, and a page and Markdown show those alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from registry.conformal import largest_coverage
from registry.errors import VersionRefused
from registry.formats.versions import installed_version
from registry.model import LoadedModel
from registry.rows.features import Feature
from registry.store.aliases import Aliases
from registry.store.history import read_changes
from registry.store.listing import kept_versions
from serving.http.routes.models import describe_distributions
from serving.pictures.chart import number_text, shown

MAX_FEATURES = 500
"""Features that are shown to people, the most important ones first; as JSON there are all."""

MAX_NAMES = 20
"""Names in a sentence; of more, only their number is said."""

BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Shares:
    """A distribution: the shares of bins or values, and what they are in words."""

    shares: Sequence[float]
    words: str


Cell = str | float | Shares | None


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a card for people: facts with their names, a table, and sentences."""

    title: str
    facts: Sequence[tuple[str, Cell]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    texts: Sequence[str] = ()


def make_card(
    model: LoadedModel, aliases: Aliases, directory: Path, quality: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The card of a version as JSON; `directory` is that of the model, `quality` that of its live predictions.

    It reads the directory. What is gone from there is left out.
    """
    manifest = model.manifest
    described = describe_distributions(model) or {}
    return {
        "model": model.name,
        "version": model.version,
        "live": model.version == aliases.live,
        "task": manifest.task,
        "estimator": manifest.estimator,
        "targets": {
            target.name: list(labels.classes)
            for target, labels in zip(model.layout.targets, model.target_labels, strict=True)
        },
        "data": {
            "source": manifest.source,
            "described_rows": described.get("rows"),
            "background_rows": len(manifest.background),
            "calibration_rows": len(manifest.conformal),
            "outputs": described.get("outputs") or {"": described.get("output")},
        },
        "features": [_feature(model, one, described.get("features", {})) for one in manifest.features],
        "metrics": manifest.metrics,
        "quality": quality,
        "explained": _explained(model),
        "limits": list(_limits(model)),
        "libraries": {
            name: {"fitted": one, "here": installed_version(name)} for name, one in manifest.libraries.items()
        },
        "artefact": {
            "format": manifest.artefact_format,
            "sha256": manifest.sha256,
            "bytes": _bytes(directory / model.version / manifest.artefact),
            "created": manifest.created,
            "code": sorted(manifest.code),
            "compiled": model.compiled,
            "python_steps": model.python_steps,
            "reason": model.reason,
        },
        "history": {
            "live": aliases.live,
            "previous": aliases.previous,
            "versions": _versions(directory),
            "changes": msgspec.to_builtins(read_changes(directory)),
        },
    }


def _feature(model: LoadedModel, one: Feature, distributions: Mapping[str, Any]) -> dict[str, Any]:
    manifest = model.manifest
    importance = {} if manifest.explainer is None else manifest.explainer.importance
    return {
        "name": one.name,
        "label": manifest.feature_labels.get(one.name),
        "kind": one.kind,
        "nullable": one.nullable,
        "minimum": one.minimum,
        "maximum": one.maximum,
        "seen": one.seen,
        "categories": one.categories,
        "open": one.open,
        "max_length": one.max_length if one.kind == "text" else None,
        "importance": importance.get(one.name),
        "distribution": distributions.get(one.name),
    }


def _explained(model: LoadedModel) -> dict[str, Any] | None:
    explainer = model.explainer
    if explainer is None:
        return None
    return {
        "method": explainer.method,
        "space": explainer.space,
        "spaces": model.spaces,
        "jobs_only": explainer.jobs_only,
        "groups": model.manifest.groups,
    }


def _bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _versions(directory: Path) -> list[dict[str, Any]]:
    try:
        return [msgspec.to_builtins(one) for one in kept_versions(directory)]
    except VersionRefused:
        return []


def _limits(model: LoadedModel) -> Iterator[str]:
    """What the version refuses, and what is to be known of the answers that it gives."""
    manifest = model.manifest
    features = manifest.features
    if model.fallback:
        yield "This version could not be loaded: a minimal model answers in its place, with means of the training data."
    if manifest.forced:
        yield f"It was added in spite of a warning: {manifest.forced}"
    yield "A row is refused that lacks a feature, or has one that the model does not know."
    yield from _limits_of_values(features)
    if len(model.layout.targets) > 1:
        names = [target.name for target in model.layout.targets]
        yield f"It predicts {len(names)} targets at once: {_listed(names)}."
    if manifest.conformal:
        most = largest_coverage(len(manifest.conformal))
        yield f"Intervals and sets of labels hold for rows like the calibration's, for a coverage of up to {most:g}."
    else:
        yield "It has no calibration rows, so no request can ask for intervals or sets of labels."
    if model.explainer is None:
        yield f"It is not explained: {model.not_explained or 'no explainer fits it'}."
    elif model.explainer.jobs_only:
        yield "It is explained by jobs only, because a row takes too long for a request."
    if model.compiled and model.python_steps:
        yield f"It is compiled, all but {_listed(model.python_steps)}, with the very bits of its estimator."
    elif model.compiled:
        yield "It is compiled: it answers the very bits of its estimator."
    else:
        yield f"It is not compiled, its estimator answers: {model.reason or 'compiling is switched off'}."
    if manifest.distributions is None:
        yield "What was usual in training was not recorded when it was added, so drift cannot be told."


def _limits_of_values(features: Sequence[Feature]) -> Iterator[str]:
    bounded = [one.name for one in features if one.minimum is not None or one.maximum is not None]
    if bounded:
        yield (
            f"A number outside the limits of its feature is refused: {_listed(bounded)}. Within them, but outside what "
            "was seen in training, it is answered, and the answer is a guess beyond the data."
        )
    for is_open, then in (
        (False, "takes the listed values only; others are refused"),
        (True, "takes other values than those listed, all of them as one that the model has never seen"),
    ):
        if names := [one.name for one in features if one.kind == "category" and one.open == is_open]:
            yield f"A category {then}: {_listed(names)}."
    if names := [one.name for one in features if one.kind == "text"]:
        yield f"A text longer than its limit is refused: {_listed(names)}."
    if names := [one.name for one in features if one.nullable]:
        yield f"A value may be missing (null) of {_listed(names)}; of any other feature it is refused."
    else:
        yield "No value may be missing."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MAX_NAMES else f"{len(names)} features"


def sections(card: Mapping[str, Any]) -> Iterator[Section]:
    """The parts of a card in the order in which people read them."""
    artefact, data = card["artefact"], card["data"]
    targets = {name: classes for name, classes in card["targets"].items() if name}
    classes = card["targets"].get("", [])
    yield Section(
        "What it is",
        [
            ("Task", card["task"]),
            ("Estimator", card["estimator"]),
            *([("Targets", ", ".join(targets))] if targets else []),
            *([("Classes", ", ".join(map(value_text, classes)))] if classes else []),
            ("State", "live" if card["live"] else "not live"),
            ("Created", artefact["created"]),
        ],
    )
    yield Section(
        "Data",
        [
            ("Origin and licence", data["source"] or "not stated"),
            ("Rows that are described here", data["described_rows"]),
            ("Background rows for explanations", data["background_rows"]),
            ("Calibration rows", data["calibration_rows"]),
            *(
                (f"Predicted over them{f': {name}' if name else ''}", _shares(one))
                for name, one in data["outputs"].items()
                if one
            ),
        ],
    )
    yield _of_features(card["features"])
    yield _of_metrics(card)
    explained = card["explained"]
    if explained:
        facts: list[tuple[str, Cell]] = [
            ("Method", explained["method"]),
            ("Space", explained["space"]),
            ("Spaces on request", ", ".join(explained["spaces"])),
        ]
        facts += [(f"Group: {name}", ", ".join(members)) for name, members in explained["groups"].items()]
        yield Section("How it is explained", facts)
    yield Section("Limits", texts=card["limits"])
    yield Section(
        "Artefact",
        [
            ("Format", artefact["format"]),
            ("SHA-256", artefact["sha256"]),
            ("Bytes", artefact["bytes"]),
            *([("Own code", ", ".join(artefact["code"]))] if artefact["code"] else []),
        ],
        ["Library", "Fitted with", "Here"],
        [[name, one["fitted"], one["here"]] for name, one in card["libraries"].items()],
    )
    yield from _of_history(card["history"])


def _of_features(features: Sequence[Mapping[str, Any]]) -> Section:
    ranked = sorted(features, key=lambda one: -(one["importance"] or 0.0))[:MAX_FEATURES]
    more = len(features) - len(ranked)
    return Section(
        "Features",
        columns=["Feature", "Kind", "Takes", "Seen in training", "Importance"],
        rows=[
            [
                one["label"] or one["name"],
                f"{one['kind']}, may be missing" if one["nullable"] else one["kind"],
                _takes(one),
                _shares(one["distribution"]) or _span(one["seen"]),
                one["importance"],
            ]
            for one in ranked
        ],
        texts=[f"And {more} less important features, which the card has as JSON."] if more else (),
    )


def _takes(one: Mapping[str, Any]) -> str:
    if one["kind"] == "category":
        values = [value_text(value) for value in one["categories"]]
        named = ", ".join(values[:MAX_NAMES]) + (
            f" and {len(values) - MAX_NAMES} more" if len(values) > MAX_NAMES else ""
        )
        return f"{named}, or others" if one["open"] else named
    if one["kind"] == "text":
        return f"up to {one['max_length']} characters"
    return _span((one["minimum"], one["maximum"]))


def _span(bounds: Sequence[float | None] | None) -> str:
    low, high = bounds or (None, None)
    if low is None:
        return "" if high is None else f"{value_text(high)} or less"
    if high is None:
        return f"{value_text(low)} or more"
    return f"{value_text(low)} to {value_text(high)}"


def _shares(one: Mapping[str, Any] | None) -> Shares | None:
    """A distribution, in words too; None where nothing is known of it."""
    if not one:
        return None
    shares, missing = one.get("shares", ()), one.get("missing", 0.0)
    words = [f"{missing:.1%} missing"] if missing else []
    if "edges" in one:
        counted = f" {one['counted']}" if "counted" in one else ""
        words.insert(0, f"{value_text(one['edges'][0])} to {value_text(one['edges'][-1])}{counted}")
    elif "values" in one:
        named = [f"{value_text(value)} {share:.1%}" for value, share in zip(one["values"], shares, strict=True)]
        words = [*named, *([f"others {one['other']:.1%}"] if one["other"] >= 0.001 else []), *words]
    return Shares(shares, ", ".join(words))


def value_text(value: Any) -> str:
    """A value of a feature or an output, or a number, as people read it."""
    if isinstance(value, bool):
        return str(value).lower()
    return number_text(value) if isinstance(value, int | float) else str(value)


def _of_metrics(card: Mapping[str, Any]) -> Section:
    quality: Mapping[str, Any] = card["quality"] or {}
    names = [name for name in {**card["metrics"], **quality} if name not in ("version", "outcomes", "is_low")]
    live = "Live: no outcome is known of this version's predictions."
    if quality.get("outcomes"):
        is_low = ", and worse than in training by more than is tolerated" if quality.get("is_low") else ""
        live = f"Live: from the latest {quality['outcomes']} outcomes{is_low}."
    return Section(
        "How good it is",
        columns=["Metric", "In training", "Live"] if names else (),
        rows=[[name.replace("_", " "), card["metrics"].get(name), quality.get(name)] for name in names],
        texts=[live],
    )


def _of_history(history: Mapping[str, Any]) -> Iterator[Section]:
    states = {history["previous"]: "previous", history["live"]: "live"}
    metrics = dict.fromkeys(name for one in history["versions"] for name in one["metrics"])
    yield Section(
        "Versions",
        columns=["Version", "State", "Added", "By", *(name.replace("_", " ") for name in metrics)],
        rows=[
            [
                one["version"],
                states.get(one["version"], ""),
                one["created"],
                f"training, job {one['trained_by']}" if one["trained_by"] else "hand",
                *(one["metrics"].get(name) for name in metrics),
            ]
            for one in reversed(history["versions"])
        ],
    )
    yield Section(
        "History",
        columns=["Time", "Version", "Change"] if history["changes"] else (),
        rows=[[one["time"], one["version"], one["act"]] for one in reversed(history["changes"])],
        texts=() if history["changes"] else ["Nothing was promoted, rolled back or removed yet."],
    )


MARKED = re.compile(r"[\\`*_\[\]~$]")
"""Characters that mean something inside a line of Markdown."""

AT_START = re.compile(r"([#+-])|(\d{1,9})([.)])(?=\s|$)")
"""What would begin a heading, a rule or a list."""
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "|": "&#124;"})
LINKED = re.compile(r"(:)(?=//)|(?<=www)(\.)", re.IGNORECASE)
"""What makes a link of a plain address."""


def markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown, with tables as GitHub writes them; nothing in it is taken for markup or a link."""
    lines = [f"# {_escaped(card['model'])}, version {_escaped(card['version'])}"]
    for section in sections(card):
        lines += ["", f"## {section.title}", ""]
        lines += [f"- **{_escaped(name)}**: {_escaped(_in_words(value))}" for name, value in section.facts]
        if section.columns:
            cells = [map(_in_words, row) for row in section.rows]
            lines += ["", _row(map(_escaped, section.columns)), _row("---" for _ in section.columns)]
            lines += [_row(map(_escaped, row)) for row in cells]
        lines += ["", *(f"- {_escaped(text)}" for text in section.texts)]
    # where a part is empty, one blank line is enough
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_words(cell: Cell) -> str:
    match cell:
        case None:
            return "\N{EN DASH}"
        case Shares(shares=shares, words=words):
            top = max(shares, default=0.0) or 1.0
            blocks = "".join(BLOCKS[round((len(BLOCKS) - 1) * share / top)] for share in shares)
            return f"{blocks} {words}".strip()
    return value_text(cell)


def _escaped(text: str) -> str:
    """A text as it may stand anywhere in a line of Markdown."""
    plain = " ".join(shown(text).split())
    linkless = LINKED.sub(lambda found: f"&#{ord(found[0])};", plain.translate(ENTITIES))
    marked = MARKED.sub(r"\\\g<0>", linkless)
    found = AT_START.match(marked)
    return f"{found[2] or ''}\\{marked[found.end() - 1 :]}" if found else marked
