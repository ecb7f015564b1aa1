"""`GET /v1/models/{model}/card`: the card of a model, as JSON, as Markdown, or as a page."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from registry.model import LoadedModel
from serving.http.card import make_card, markdown, sections
from serving.http.negotiation import preferred
from serving.http.pages.page import show
from serving.http.representation import CACHED_BY_CLIENTS
from serving.http.routes.predict import JSON
from serving.service import Service

HTML, MARKDOWN = b"text/html", b"text/markdown"

HEADERS = {"vary": "Accept", "cache-control": CACHED_BY_CLIENTS}


def card_router(service: Service, *, has_pages: bool) -> APIRouter:
    """The routes of cards; with pages, for people too."""
    router = APIRouter(prefix="/v1/models", tags=["models"])
    offers = (JSON, MARKDOWN, HTML) if has_pages else (JSON, MARKDOWN)

    async def answer(request: Request, model: LoadedModel) -> Response:
        accepted = preferred(dict(request.scope["headers"]).get(b"accept"), offers)
        card = await find_card(service, model)
        if accepted == HTML:
            return show_card(request, card)
        content = markdown(card).encode() if accepted == MARKDOWN else msgspec.json.encode(card)
        return Response(content, media_type=accepted.decode(), headers=HEADERS)

    @router.get("/{model}/card", summary="The card of a model: its data, features, quality, limits and history")
    async def show_model_card(request: Request, model: str) -> Response:
        return await answer(request, service.registry.get(model))

    @router.get("/{model}/versions/{version}/card", summary="The card of one version")
    async def show_version_card(request: Request, model: str, version: str) -> Response:
        return await answer(request, service.registry.get(model, version))

    return router


async def find_card(service: Service, model: LoadedModel) -> dict[str, Any]:
    """The card of a version, with the quality of its predictions if it is live."""
    measured = (await service.quality.take()).get(model.name)
    quality = measured if measured and measured["version"] == model.version else None
    aliases = service.registry.aliases(model.name)
    return await asyncio.to_thread(make_card, model, aliases, service.model_dir / model.name, quality)


def show_card(request: Request, card: dict[str, Any]) -> Response:
    """A card as a page."""
    return show(request, "card.html", card=card, sections=list(sections(card)))
