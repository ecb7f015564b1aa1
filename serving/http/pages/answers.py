"""What a model says to the values of a form: asked on the way that every request goes, and laid out for a template."""

from __future__ import annotations

import pprint
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import Message

from registry.errors import Fault, InvalidRows
from registry.model import LoadedModel
from serving.http.problems import DETAIL, STATUS, status_of
from serving.http.routes.predict import PredictRoute
from serving.pictures.explanation import value_text
from serving.predict.operation import ANSWERS, Verb

MAX_BARS = 8
"""Classes whose probabilities are shown at once; the others are below them."""

JSON_BODY = [(b"content-type", b"application/json")]


@dataclass(frozen=True, slots=True)
class ApiReply:
    """The answer of the API: its content, or why there is none."""

    status: int
    content: Any = None
    detail: str = ""
    faults: Sequence[Fault] = ()
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class ClassBar:
    """The share of a class, or its margin beside the others'."""

    name: str
    value: float
    width: float
    """In per cent of the longest that there can be."""
    is_answer: bool


@dataclass(frozen=True, slots=True)
class TargetOutcome:
    """What a model says of one target."""

    target: str
    label: str = ""
    value: float | None = None
    score: float | None = None
    interval: tuple[float, float] | None = None
    labels: tuple[str, ...] = ()
    """The set of labels among which the true one is, with the coverage asked for."""
    unit: str = ""
    bars: tuple[ClassBar, ...] = ()

    @property
    def first_bars(self) -> tuple[ClassBar, ...]:
        return self.bars[:MAX_BARS]

    @property
    def other_bars(self) -> tuple[ClassBar, ...]:
        return self.bars[MAX_BARS:]


@dataclass(frozen=True, slots=True)
class FeaturePart:
    """What a feature adds to an output."""

    name: str
    label: str
    given: str
    value: float
    share: float
    rank: int


@dataclass(frozen=True, slots=True)
class ExplainedOutput:
    """The explanation of one output."""

    of: str
    base: float
    output: float
    parts: tuple[FeaturePart, ...]


async def ask(route: PredictRoute, request: Request, model: LoadedModel, verb: Verb, body: Any) -> ApiReply:
    """The answer to a request to the API, made in this process; refusals are replies, failures are raised."""
    content = msgspec.json.encode(body)
    sent: list[Message] = []
    path = {"model": model.name, "version": model.version, "verb": verb}
    scope = {**request.scope, "method": "POST", "headers": JSON_BODY, "path_params": path}

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await route(scope, receive, send)
    except tuple(STATUS) as error:
        faults = error.faults if isinstance(error, InvalidRows) else ()
        detail = DETAIL.get(type(error), str(error))
        return ApiReply(status_of(error), None, detail, faults, getattr(error, "retry_after", None))
    return ApiReply(sent[0]["status"], msgspec.json.decode(b"".join(one["body"] for one in sent[1:])))


def outcomes(prediction: Any) -> list[TargetOutcome]:
    """What a prediction says, target by target."""
    found = prediction.get("prediction", prediction) if isinstance(prediction, Mapping) else prediction
    if isinstance(found, Mapping) and not found.keys() & {"label", "score", "probabilities", "margins"}:
        return [_outcome(name, one, {}) for name, one in found.items()]
    return [_outcome("", found, prediction if isinstance(prediction, Mapping) else {})]


def _outcome(target: str, found: Any, around: Mapping[str, Any]) -> TargetOutcome:
    if not isinstance(found, Mapping):
        interval = around.get("interval")
        return TargetOutcome(target, value=found, interval=(interval[0], interval[1]) if interval else None)
    label = found.get("label")
    shares, margins = found.get("probabilities"), found.get("margins")
    return TargetOutcome(
        target,
        label=show_label(label),
        score=found.get("score"),
        labels=tuple(map(show_label, around.get("set", ()))),
        unit="probability" if shares else "margin" if margins else "",
        bars=_bars(shares or margins or {}, show_label(label), is_share=bool(shares)),
    )


def _bars(values: Mapping[str, float], label: str, *, is_share: bool) -> tuple[ClassBar, ...]:
    longest = 1.0 if is_share else max(map(abs, values.values()), default=1.0) or 1.0
    bars = [ClassBar(name, value, 100 * abs(value) / longest, name == label) for name, value in values.items()]
    return tuple(sorted(bars, key=lambda bar: -bar.value))


def show_label(label: Any) -> str:
    """A label as text."""
    return "" if label is None else label if isinstance(label, str) else msgspec.json.encode(label).decode()


def explained(explanation: Mapping[str, Any], instance: Mapping[str, Any]) -> Iterator[ExplainedOutput]:
    """The explanation of each output, largest contribution first."""
    labels = explanation.get("labels", {})
    for of, one in _outputs(explanation, ""):
        values = one["values"]
        total = sum(map(abs, values.values())) or 1.0
        ordered = sorted(values.items(), key=lambda item: -abs(item[1]))
        parts = tuple(
            FeaturePart(
                name=name,
                label=labels.get(name, name),
                given=value_text(name, instance),
                value=value,
                share=abs(value) / total,
                rank=rank,
            )
            for rank, (name, value) in enumerate(ordered, 1)
        )
        yield ExplainedOutput(of, one["base_value"], one["output"], parts)


def _outputs(explanation: Mapping[str, Any], of: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, one in explanation.get("targets", {}).items():
        yield from _outputs(one, name)
    for name, one in explanation.get("classes", {}).items():
        yield f"{of}: {name}" if of else name, one
    if "values" in explanation:
        yield of or show_label(explanation.get("label")), explanation


def requests_made(
    address: str, model: LoadedModel, bodies: Mapping[Verb, Any], *, is_live: bool, needs_key: bool
) -> list[tuple[str, str]]:
    """The requests behind a page, by language, to be copied."""
    version = "" if is_live else f"/versions/{model.version}"
    urls = {verb: f"{address}/v1/models/{model.name}{version}:{verb}" for verb in bodies}
    return [
        ("curl", "\n\n".join(_curl(urls[verb], body, needs_key=needs_key) for verb, body in bodies.items())),
        ("Python", _python(urls, bodies, needs_key=needs_key)),
        (
            "JavaScript",
            "\n\n".join(_javascript(urls[verb], verb, body, needs_key=needs_key) for verb, body in bodies.items()),
        ),
    ]


def _curl(url: str, body: Any, *, needs_key: bool) -> str:
    lines = [f"curl {shlex.quote(url)}", "  -H 'Content-Type: application/json'"]
    if needs_key:
        lines.append('  -H "Authorization: Bearer $API_KEY"')
    return " \\\n".join([*lines, f"  -d {shlex.quote(msgspec.json.encode(body).decode())}"])


def _python(urls: Mapping[Verb, str], bodies: Mapping[Verb, Any], *, needs_key: bool) -> str:
    headers = ', headers={"Authorization": "Bearer " + os.environ["API_KEY"]}' if needs_key else ""
    lines = ["import os", ""] if needs_key else []
    lines += ["import httpx", ""]
    for verb, body in bodies.items():
        shown = pprint.pformat(body, sort_dicts=False, width=100)
        lines.append(f"body = {shown}\nanswer = httpx.post({urls[verb]!r}, json=body{headers})")
        lines.append(f'print(answer.raise_for_status().json()["{ANSWERS[verb]}"])\n')
    return "\n".join(lines).rstrip()


def _javascript(url: str, verb: Verb, body: Any, *, needs_key: bool) -> str:
    headers = (
        '{ "Content-Type": "application/json"' + (", Authorization: `Bearer ${apiKey}`" if needs_key else "") + " }"
    )
    shown = msgspec.json.format(msgspec.json.encode(body), indent=2).decode()
    return (
        f"const {ANSWERS[verb]} = await fetch({msgspec.json.encode(url).decode()}, {{\n"
        f'  method: "POST",\n  headers: {headers},\n  body: JSON.stringify({shown}),\n'
        "}).then((answer) => answer.json());"
    )
