"""Static files of the pages: read, hashed and compressed once, before the fork."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from serving.errors import RouteNotFound
from serving.http.coding import compress_well
from serving.http.negotiation import CODINGS, coding_of
from serving.http.representation import CACHED_BY_CLIENTS, entity_tag, matches

DIRECTORY = Path(__file__).parent / "static"

TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, and the forms in which it is sent by their content coding; empty for none."""

    forms: Mapping[bytes, bytes]
    media_type: str
    digest: str


class Assets:
    """All files, below a path that has the hash of them all, so that modules import each other by plain names."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._files = {path.name: _read(path) for path in sorted(directory.iterdir()) if path.suffix in TYPES}
        listed = "\n".join(f"{name} {asset.digest}" for name, asset in self._files.items())
        self.version = blake2b(listed.encode(), digest_size=8).hexdigest()

    def text(self, name: str) -> str:
        return self._files[name].forms[b""].decode()

    def path(self, name: str) -> str:
        """The address of a file. Raises KeyError if there is none of that name."""
        assert self._files[name]
        return f"/pages/static/{self.version}/{name}"

    def answer(self, request: Request, version: str, name: str) -> Response:
        """The answer to a request. Raises RouteNotFound.

        A page of another release, whose files had another hash, gets the files that are there, but may not keep them.
        """
        asset = self._files.get(name)
        if asset is None:
            raise RouteNotFound
        if version != self.version:
            return Response(asset.forms[b""], 200, {"cache-control": CACHED_BY_CLIENTS}, asset.media_type)
        asked = dict(request.scope["headers"])
        coding = coding_of(asked.get(b"accept-encoding"))
        tag = entity_tag(asset.forms[b""], coding)
        headers = {"cache-control": FOR_EVER, "etag": tag.decode(), "vary": "Accept-Encoding"}
        if matches(asked.get(b"if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        if coding:
            headers["content-encoding"] = coding.decode()
        return Response(asset.forms[coding], 200, headers, asset.media_type)


@cache
def load_assets() -> Assets:
    """The files of the pages; read once for all reloads of models."""
    return Assets()


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    digest = blake2b(content, digest_size=8).hexdigest()
    forms = {b"": content} | {coding: compress_well(content, coding) for coding in CODINGS}
    return Asset(forms, TYPES[path.suffix], digest)
