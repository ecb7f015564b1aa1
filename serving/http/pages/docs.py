"""The reference of the API as a page: what the OpenAPI document says, to be read and tried out, without other sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from serving.http.keys import Keys, visible_paths
from serving.http.pages.page import guarded, show

TAGS = ("predict", "explain", "models", "outcomes", "entities", "jobs", "health", "admin")
"""The order of the groups; others follow."""

MAX_EXAMPLE_CHARACTERS = 20_000


def docs_router(keys: Keys) -> APIRouter:
    """The page of the whole API, as far as whoever looks may use it."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    @guarded
    async def docs(request: Request) -> Response:
        document = request.app.openapi()
        document = document | {"paths": visible_paths(document, keys.reader(request.scope))}
        groups: dict[str, list[dict[str, Any]]] = {tag: [] for tag in TAGS}
        for operation in _operations(document):
            groups.setdefault(operation["tag"], []).append(operation)
        shown = [(tag, operations) for tag, operations in groups.items() if operations]
        return show(request, "docs.html", document=document, groups=shown)

    return router


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each operation as the template shows it; those of single versions are like those of their models."""
    for path, item in document["paths"].items():
        if "/versions/" in path and "{" not in path:
            continue
        for method, one in item.items():
            media, body = _body(one)
            yield {
                "tag": (one.get("tags") or ["other"])[0],
                "method": method.upper(),
                "path": path,
                "summary": one.get("summary", ""),
                "scopes": _scopes(one),
                "parameters": [
                    {
                        "field": f"{parameter['in']}.{parameter['name']}",
                        "name": parameter["name"],
                        "text": parameter.get("description", f"in the {parameter['in']}"),
                        "required": parameter.get("required", False),
                    }
                    for parameter in one.get("parameters", ())
                    if parameter["in"] in ("path", "query")
                ],
                "media": media,
                "body": body,
                "responses": [
                    (status, said.get("description", "")) for status, said in sorted(one["responses"].items())
                ],
                # a stream never ends, and a file is not typed
                "is_plain": not path.endswith("/events") and media in ("", "application/json"),
            }


def _body(operation: Mapping[str, Any]) -> tuple[str, str | None]:
    """The media type of a request's body, and an example of it; None without a body."""
    content = operation.get("requestBody", {}).get("content")
    if not content:
        return "", None
    media = "application/json" if "application/json" in content else next(iter(content))
    schema = content[media].get("schema", {})
    example = schema.get("example")
    if example is None:
        example = next(iter(schema.get("examples", ())), None)
    if example is None:
        return media, ""
    text = msgspec.json.format(msgspec.json.encode(example), indent=2).decode()
    return media, text if len(text) <= MAX_EXAMPLE_CHARACTERS else ""


def _scopes(operation: Mapping[str, Any]) -> str:
    """The scopes of which a key needs one; empty where none is needed."""
    ways = operation.get("security", ())
    if not ways or {} in ways:
        return ""
    return " or ".join(sorted({scope for way in ways for scopes in way.values() for scope in scopes})) or "any"
