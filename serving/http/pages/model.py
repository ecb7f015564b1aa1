"""The page of a model: its form, and what the model says to the values in it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Request, Response

from registry.errors import NotExplained
from registry.model import LoadedModel
from serving.errors import InvalidRequest, UnsupportedBody
from serving.http.body import body_type, read_body
from serving.http.keys import NEEDED, Keys, key_of
from serving.http.pages.answers import ApiReply, ask, explained, outcomes, requests_made
from serving.http.pages.form import OTHER_PREFIX, Field, initial_instance, make_fields, read_instance
from serving.http.pages.page import POLICY, show
from serving.http.routes.models import detail
from serving.http.routes.predict import PredictRoute
from serving.pictures.explanation import waterfall, waterfall_page
from serving.predict.operation import Verb
from serving.service import Service

FORM = b"application/x-www-form-urlencoded"

MAX_SHOWN = 15
"""Features whose contributions are shown one by one."""

PIXELS = 330
"""The narrowest place for a picture, which stretches: names are cut to fit it."""

OPTIONS = ("version", "class", "space", "coverage")
"""The parameters of a page besides values of features."""

PICTURES = {"svg": "image/svg+xml", "html": "text/html; charset=utf-8"}
"""The types of files that an explanation is saved as, by the value of `as`."""

COVERAGES = ("0.8", "0.9", "0.95", "0.99")


@dataclass(frozen=True, slots=True)
class ModelQuestion:
    """What a request asks: a version, the values of its row, those of the row to compare it with, and options."""

    model: LoadedModel
    is_live: bool
    initial: Mapping[str, Any]
    instance: Mapping[str, Any]
    other: Mapping[str, Any] | None
    options: Mapping[str, str]

    @property
    def instances(self) -> list[Mapping[str, Any]]:
        return [self.instance] if self.other is None else [self.instance, self.other]

    def bodies(self) -> dict[Verb, Any]:
        """The bodies of the requests to the API."""
        predict: dict[str, Any] = {"instances": self.instances}
        coverage = self.options.get("coverage")
        if coverage in COVERAGES and self.model.manifest.conformal:
            predict["parameters"] = {"coverage": float(coverage)}
        found: dict[Verb, Any] = {"predict": predict}
        if self.model.explainer is not None:
            parameters: dict[str, Any] = {"top": MAX_SHOWN}
            if self.options.get("class"):
                parameters["classes"] = [self.options["class"]]
            if self.options.get("space"):
                parameters["space"] = self.options["space"]
            found["explain"] = {"instances": self.instances, "parameters": parameters}
        return found


class ModelPage:
    """Answers requests for the pages of models."""

    def __init__(self, service: Service, route: PredictRoute, keys: Keys) -> None:
        self._registry = service.registry
        self._show_examples = service.show_examples
        self._max_body_bytes = service.limits.max_body_bytes
        self._route = route
        self._needs_key = not keys.is_open

    async def answer(self, request: Request, name: str) -> Response:
        """The page, or the part of it that changes with the values.

        Raises ModelNotFound, VersionNotFound, NotLoaded, InvalidRequest, UnsupportedBody, BodyTooLarge.
        """
        sent = await self._read(request)
        question = self._question(name, sent)
        replies: dict[Verb, ApiReply] = {}
        bodies = question.bodies()
        if key_of(request.scope).scopes & NEEDED["predict"]:
            asked = [ask(self._route, request, question.model, verb, body) for verb, body in bodies.items()]
            replies = dict(zip(bodies, await asyncio.gather(*asked), strict=True))
        predicted = replies.get("predict")
        faults = [fault for fault in (predicted.faults if predicted else ()) if fault.instance == 0]
        fields = make_fields(question.model, question.instance, question.initial, faults)
        if sent.get("as") in PICTURES:
            return _save(question, replies, sent["as"])
        address = f"{request.url.scheme}://{request.url.netloc}"
        values: dict[str, Any] = {
            "model": detail(self._registry, question.model, show_examples=self._show_examples),
            "question": question,
            "fields": fields,
            "link": _link(fields, sent),
            "replies": replies,
            "found": _lay_out(replies, question),
            "requests": requests_made(
                address, question.model, bodies, is_live=question.is_live, needs_key=self._needs_key
            ),
        }
        template = "answer.html" if sent.get("part") == "answer" else "model.html"
        return show(request, template, coverages=COVERAGES, **values)

    async def _read(self, request: Request) -> dict[str, str]:
        """The values of a form, or of a query."""
        content = request.scope["query_string"]
        if request.method == "POST":
            headers = dict(request.scope["headers"])
            if body_type(headers) != FORM:
                raise UnsupportedBody(f"send {FORM.decode()}")
            body = await read_body(headers, request.receive, self._max_body_bytes)
            content = content + b"&" + body if content else body
        try:
            # most names are those of features, and no two are equal
            return dict(parse_qsl(content.decode(), keep_blank_values=True, max_num_fields=10_000))
        except ValueError:
            raise InvalidRequest("the form has too many fields, or is not UTF-8") from None

    def _question(self, name: str, sent: Mapping[str, str]) -> ModelQuestion:
        version = sent.get("version") or None
        model = self._registry.get(name, version)
        initial = initial_instance(model, show_example=self._show_examples)
        is_compared = any(key.startswith(OTHER_PREFIX) for key in sent) or "compare" in sent
        return ModelQuestion(
            model=model,
            is_live=version is None,
            initial=initial,
            instance=read_instance(model, sent, initial),
            other=read_instance(model, sent, initial, OTHER_PREFIX) if is_compared else None,
            options={option: sent[option] for option in OPTIONS if sent.get(option)},
        )


def _save(question: ModelQuestion, replies: Mapping[Verb, ApiReply], kind: str) -> Response:
    """The picture of the explanation as a file. Raises NotExplained if there is none."""
    reply = replies.get("explain")
    if reply is None or reply.status != HTTPStatus.OK:
        raise NotExplained(reply.detail if reply and reply.detail else "there is no explanation to be saved")
    explanation, name = reply.content["explanations"][0], f"{question.model.name} {question.model.version}"
    draw = waterfall if kind == "svg" else waterfall_page
    headers = {
        "content-disposition": f'attachment; filename="{question.model.name}-{question.model.version}.{kind}"',
        "content-security-policy": POLICY,
    }
    return Response(draw(explanation, question.instance, name, most=MAX_SHOWN), 200, headers, PICTURES[kind])


def _link(fields: list[Field], sent: Mapping[str, str]) -> str:
    """The query that shows the same again: options, and values that are not the initial ones."""
    kept = {name: value for name, value in sent.items() if value and name in OPTIONS}
    kept |= {field.key: field.value for field in fields if field.is_changed}
    kept |= {name: value for name, value in sent.items() if name.startswith(OTHER_PREFIX) or name == "compare"}
    return urlencode(kept)


def _lay_out(replies: Mapping[Verb, ApiReply], question: ModelQuestion) -> dict[str, Any]:
    """The answers as the template shows them; empty for what could not be answered."""
    predicted, explanation = replies.get("predict"), replies.get("explain")
    found: dict[str, Any] = {"outcomes": [], "others": [], "explained": [], "pictures": [], "changed": [], "job": None}
    if predicted and predicted.status == 200:
        rows = [outcomes(prediction) for prediction in predicted.content["predictions"]]
        found["outcomes"], found["others"] = rows[0], rows[1] if len(rows) > 1 else []
    if explanation and explanation.status == 200:
        pairs = list(zip(explanation.content["explanations"], question.instances, strict=True))
        found["explained"] = list(explained(*pairs[0]))
        found["pictures"] = [waterfall(*pair, title="", most=MAX_SHOWN, width=PIXELS) for pair in pairs]
    elif explanation and explanation.status == 202:
        found["job"] = explanation.content["id"]
    if question.other is not None:
        found["changed"] = [
            (name, question.other[name], value)
            for name, value in question.instance.items()
            if value != question.other[name]
        ]
    return found
