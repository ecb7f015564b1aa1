"""Who may see and do what only the operator may: whoever has the admin token."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeAlias

from fastapi import Header, Request

from serving.errors import NotAuthorized

Authorize: TypeAlias = Callable[..., Awaitable[None]]
"""A dependency of FastAPI's that raises NotAuthorized."""


def make_authorize(token: str, *, in_query: bool) -> Authorize | None:
    """None without a token: then there are no admin routes, so that a forgotten setting opens nothing.

    `in_query` also takes `?admin_token=`, for who cannot set a header. The query is in no log line of ours, but may be
    in those of whoever stands in between.
    """
    if not token:
        return None
    expected = token.encode()

    async def authorize(
        request: Request,
        authorization: Annotated[str | None, Header()] = None,
        x_admin_token: Annotated[str | None, Header()] = None,
    ) -> None:
        scheme, _, credentials = (authorization or "").partition(" ")
        # as bytes: compare_digest refuses text that is not ASCII, and a header or a query may hold anything
        given = (credentials if scheme.lower() == "bearer" else x_admin_token or "").strip().encode("latin-1")
        if not given and in_query:
            given = request.query_params.get("admin_token", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, expected):
            raise NotAuthorized("a valid admin token is needed")

    return authorize
