"""A page as it is sent: a template filled in, below a strict Content-Security-Policy."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from serving.http.keys import LOCKED, key_of
from serving.http.negotiation import preferred
from serving.http.pages.assets import load_assets
from serving.http.problems import DETAIL, STATUS, status_of
from serving.http.representation import CACHED_BY_CLIENTS

TEMPLATES = Path(__file__).parent / "templates"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # what a page shows depends on both
    "vary": "Accept, Authorization",
}

OF_SOMEBODY = ("/jobs/", "/entities")
"""Beginnings of the paths of pages that show somebody's data, whose JSON is not kept by browsers either."""

ENDS_OF_WORDS = re.compile(r"(?<=[_/.-])(?=\w)")

NOTHING = "\N{EN DASH}"
"""Stands for a value that is not there."""

UNITS = ("B", "kB", "MB", "GB", "TB")
TIMES = ((86_400, "d"), (3_600, "h"), (60, "min"))


def wants_html(request: Request) -> bool:
    """Whether the client likes HTML better than JSON."""
    accept = dict(request.scope["headers"]).get(b"accept")
    return preferred(accept, (b"application/json", b"text/html")) == b"text/html"


def number(value: float | None, digits: int = 4) -> str:
    """A number that a script may rewrite as the reader's locale has it."""
    if value is None:
        return NOTHING
    text = f"{value:,}" if isinstance(value, int) else rounded(value, digits)
    return Markup('<data class="number" value="{}" data-digits="{}">{}</data>').format(value, digits, text)


def rounded(value: float, digits: int) -> str:
    """A number with so many significant digits."""
    if not math.isfinite(value) or (value and not 1e-4 <= abs(value) < 1e15):
        return f"{value:.{digits}g}"
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float) -> str:
    """A share of 1, to a tenth of a per cent."""
    return f"{share:.1%}"


def size(count: float) -> str:
    """A number of bytes in the largest unit that leaves it above 1."""
    place = min(int(math.log(count, 1000)), len(UNITS) - 1) if count >= 1 else 0
    return f"{count / 1000**place:.{1 if place else 0}f} {UNITS[place]}"


def seconds(value: float | None) -> str:
    """A span of time."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0 s"
    for unit, name in TIMES:
        if value >= unit:
            return f"{value / unit:.0f} {name}" if value >= 10 * unit else f"{value / unit:.1f} {name}"
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1000:.{1 if value < 0.01 else 0}f} ms"


def age(moment: str | None) -> str:
    """How long ago a time in ISO 8601 was."""
    if not moment:
        return NOTHING
    then = datetime.fromisoformat(moment)
    passed = datetime.now(UTC) - (then if then.tzinfo else then.replace(tzinfo=UTC))
    return f"{seconds(max(0.0, passed.total_seconds()))} ago"


def spark(values: Sequence[float]) -> str:
    """The points of a line through values, 100 wide and 24 high."""
    low, high = min(values), max(values)
    step, scale = 100 / max(1, len(values) - 1), 20 / ((high - low) or 1.0)
    return " ".join(f"{index * step:.1f},{22 - (value - low) * scale:.1f}" for index, value in enumerate(values))


def soft(text: str) -> Markup:
    """A name that may be broken where its words end."""
    return Markup("<wbr>").join(ENDS_OF_WORDS.split(text))


@cache
def _environment() -> Environment:
    """All templates, compiled; once for all reloads of models."""
    assets = load_assets()
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters.update({one.__name__: one for one in (number, percent, size, seconds, age, soft, spark)})
    found.globals.update(asset=assets.path, stylesheet=assets.text("style.css"))
    for name in found.list_templates():
        found.get_template(name)
    return found


def fill(template: str, **values: Any) -> str:
    """The text of a template."""
    return _environment().get_template(template).render(**values)


def prepare_pages() -> None:
    """Compile the templates and read the static files; to be called before the fork."""
    _environment()


def show(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A page. Of a part of one (`?part=`), a script asks for what has changed."""
    key = key_of(request.scope)
    content = fill(template, path=request.url.path, key_name=key.name, **values)
    # the values of a form are in the query
    is_kept = not (key.name or request.url.query or request.url.path.startswith(OF_SOMEBODY))
    headers = {**HEADERS, "cache-control": CACHED_BY_CLIENTS if is_kept else "no-store"}
    return Response(content, int(status), headers, "text/html; charset=utf-8")


Route = Callable[..., Awaitable[Response]]


def guarded(route: Route) -> Route:
    """A route of a page: it asks for a key where the JSON behind the page needs one, and shows refusals as pages."""

    @functools.wraps(route)
    async def answer(request: Request, **values: Any) -> Response:
        if key_of(request.scope) is LOCKED:
            return show_lock(request)
        try:
            return await route(request, **values)
        except tuple(STATUS) as error:
            return show_error(request, status_of(error), DETAIL.get(type(error), str(error)))

    return answer


def show_error(request: Request, status: HTTPStatus, detail: str) -> Response:
    """The page in place of one that cannot be shown."""
    return show(request, "error.html", status, title=status.phrase, detail=detail)


def show_lock(request: Request) -> Response:
    """The page that asks for a key, whatever there is behind it."""
    reason = request.scope["state"].get("locked")
    was_sent = "authorization" in request.headers
    return show(request, "locked.html", reason=str(reason).partition(";")[0] if was_sent else "")
