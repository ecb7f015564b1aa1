"""API keys: what an entry says, who sends a request, and what a key of these scopes may do.

Context: a key is 256 random bits that only its holder has; the service keeps the SHA-256 of it. A slow hash, as for
passwords, would protect nothing more, and cost every request. Decision: the hash of what a request sends is looked up
in a dictionary, so the time that this takes says nothing of any key. One expression maps every path to a scope, before
any route is looked up; a path that it does not know is there for keys of scope `admin` only. Consequence: a route that
is added without a scope is closed, and a check costs a request 2 us.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs

import structlog
from starlette.types import Scope

from registry.store.directory import NAME, read_file
from serving.errors import InvalidSetting, JobNotFound, NotAuthorized, NotPermitted, RouteNotFound
from serving.http.body import HeaderMap
from serving.jobs.job import Job
from serving.shared.rate_table import Rate, parse_rate

SCOPES = ("predict", "write", "read", "admin")
ADMIN = frozenset({"admin"})
ANY = frozenset(SCOPES)
NEEDED: Mapping[str, frozenset[str]] = {scope: frozenset({scope, "admin"}) for scope in SCOPES}
"""The scopes of which a key needs one, by the scope that is asked for: `admin` implies all others."""

PATHS = re.compile(
    r"(?P<open>/openapi\.json|/pages/.*|/health(?:/.*)?|/ping|/version|/v2/health/(?:live|ready))"
    r"|(?P<page>/|/docs|/admin|/entities|/(?:models|monitoring|entities|jobs)/[^/]*|/models/[^/]*/(?:versions|batch|importance|card))"
    r"|(?P<predict>/v1/models/[^/:]*(?:/versions/[^/:]*)?(?::predict|:explain|/importance)|/v1/jobs(?:/.*)?"
    r"|/invocations|/(?:endpoints|serving-endpoints)/[^/]*/invocations|/score"
    r"|/v2/models/[^/]*(?:/versions/[^/]*)?/infer)"
    r"|(?P<data>/v1/entities(?:/.*)?|/v1/predictions|/v1/models/[^/]*/(?:outcomes|drift|quality|canary|shadow))"
    r"|(?P<log>/v1/predictions/.*)"
    r"|(?P<models>/v1/models(?:/.*)?|/v2(?:/.*)?)"
    r"|(?P<admin>/api/admin(?:/.*)?|/metrics)",
    re.DOTALL,
)
"""Every path by what it is about; the scope also depends on the method, see `needed_scopes`."""

TWINS: Mapping[re.Pattern[str], str] = {
    re.compile(page): twin
    for page, twin in {
        r"/": r"/v1/models",
        r"/docs": r"/openapi.json",
        r"/(models/[^/]*/(?:importance|card))": r"/v1/\1",
        r"/(models/[^/]*)(?:/.*)?": r"/v1/\1",
        r"/(jobs/[^/]*)": r"/v1/\1",
        r"/(entities)": r"/v1/\1",
        r"/(entities/[^/]*)": r"/v1/\1/records",
        r"/monitoring(/[^/]*)": r"/v1/models\1/quality",
        r"/admin": r"/api/admin/metrics",
    }.items()
}
"""For the path of a page that of the JSON that it shows, whose key it takes; the first that fits."""

MODEL = re.compile(r"(?!/v2/models/stats$)/(?:(?:[^/]+|api/admin)/models|endpoints|serving-endpoints)/([^/:]+)")
"""The model that a path names; the statistics of all models are those of the models that a key may use."""

DIGEST = re.compile(r"[0-9a-fA-F]{64}")
BETWEEN_ENTRIES = re.compile(r"[\s;]+|,(?=[^:,;\s]+:[0-9a-fA-F]{64}:)")
BETWEEN_WORDS = re.compile(r"[,+]")

MAX_FILE_BYTES = 1024 * 1024
WATCH_SECONDS = 1.0
"""Seconds between two looks at the file of keys."""

MAX_SENT_BYTES = 256
"""Nothing longer is a key."""

USAGE = "send a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without the secret: several may have one name, and then count and own as one."""

    name: str
    digest: bytes
    """The SHA-256 of the secret."""
    scopes: frozenset[str]
    rate: Rate | None = None
    """None for no limit."""
    models: frozenset[str] = frozenset()
    """The models that it may use; empty for all."""
    expires: float | None = None
    """In seconds since the epoch; None for never."""

    def may_use(self, model: str) -> bool:
        """Whether the key may use this model."""
        return not self.models or model in self.models

    def check_model(self, model: str) -> None:
        """Raise NotPermitted if the key may not use this model, whether there is one of that name or not."""
        if not self.may_use(model):
            raise NotPermitted("this key may not use that model")

    def check_job(self, job: Job) -> None:
        """Raise JobNotFound for the job of another key. Those of schedules, and older ones, are the admin's."""
        if "admin" not in self.scopes and job.client != self.name:
            raise JobNotFound


NOBODY = Key("", b"", ANY)
"""Stands for whoever sends a request to an open service."""

LOCKED = Key("", b"", frozenset(), models=frozenset({""}))
"""Stands for whoever asks for a page without a key that may see what it shows; gets a page that asks for one."""

PAGE = frozenset({"page"})
"""What `needed_scopes` says of pages."""


def key_of(scope: Scope) -> Key:
    """The key of a request that has been checked."""
    found: Key = scope["state"].get("key", NOBODY)
    return found


def new_secret() -> str:
    """A new key: 256 random bits behind a prefix by which scanners for secrets know it."""
    return f"fks_{secrets.token_urlsafe(32)}"


def digest_of(secret: str) -> bytes:
    """The digest by which a key is known."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def parse_entries(text: str) -> tuple[Key, ...]:
    """The keys of API_KEYS: entries between spaces, lines, semicolons or commas. Raises ValueError."""
    return _parse(part for part in BETWEEN_ENTRIES.split(text) if part)


def parse_lines(text: str) -> tuple[Key, ...]:
    """The keys of a file: an entry a line; `#` begins a comment. Raises ValueError, also without any entry."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return _parse(line for line in lines if line)


def _parse(entries: Iterable[str]) -> tuple[Key, ...]:
    """Raises ValueError with the number of the first entry that is wrong, never with its text, and without any."""
    keys: dict[bytes, Key] = {}
    for number, entry in enumerate(entries, 1):
        try:
            key = parse_entry(entry)
        except ValueError as error:
            raise ValueError(f"entry {number} {error}") from None
        if key.digest in keys:
            raise ValueError(f"entry {number} has the same key as another")
        keys[key.digest] = key
    if not keys:
        raise ValueError("has no entry")
    return tuple(keys.values())


def parse_entry(text: str) -> Key:
    """Parse `name:sha256:scopes[:rate[:models[:expires]]]`. Raises ValueError, whose message holds no part of it."""
    name, digest, scopes, rate, models, expires = (text.split(":", 5) + [""] * 5)[:6]
    if not NAME.fullmatch(name):
        raise ValueError("must be name:sha256:scopes, with a name of letters, digits and . _ -")
    if not DIGEST.fullmatch(digest):
        raise ValueError("must have the 64 hexadecimal digits of the key's SHA-256 after the name")
    granted = _words(scopes)
    if not granted or not granted <= ANY:
        raise ValueError(f"must have scopes after that, some of {', '.join(SCOPES)}")
    allowed = _words(models)
    if not all(map(NAME.fullmatch, allowed)):
        raise ValueError("has a name that no model can have")
    try:
        limit = parse_rate(rate.strip(), 0) if rate.strip() else None
    except ValueError as error:
        raise ValueError(f"has a rate that {error}") from None
    return Key(name, bytes.fromhex(digest), granted, limit, allowed, _parse_expiry(expires.strip()))


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in BETWEEN_WORDS.split(text) if word.strip())


def _parse_expiry(text: str) -> float | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must end with a date such as 2027-01-31, or a time such as 2027-01-31T12:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def needed_scopes(method: str, path: str) -> frozenset[str] | None:
    """The scopes of which a key needs one; empty where none is needed, None for a path that is not known."""
    found = PATHS.fullmatch(path)
    if found is None:
        return None
    kind = found.lastgroup
    if kind == "open":
        return frozenset()
    if kind == "page":
        return PAGE
    is_reading = method in ("GET", "HEAD")
    if kind == "data" or (kind == "log" and method == "DELETE"):
        return NEEDED["read" if is_reading else "write"]
    if kind in ("models", "log"):
        return ANY  # models are only read; of the log a key has what it has asked itself
    return NEEDED[str(kind)]


class Keys:
    """All keys of the service, and the check of each request. Every process watches the file for itself."""

    def __init__(
        self, fixed: Iterable[Key], file: Path | None = None, *, is_open: bool = False, admin_in_query: bool = False
    ) -> None:
        """A service that `is_open` asks for keys only where the scope is `admin`.

        `admin_in_query` also accepts `?admin_token=` there, for clients that cannot set a header. No log line of ours
        shows the query, but those of a proxy may. Raises InvalidSetting if `file` cannot be used.
        """
        self.is_open = is_open
        self._fixed = tuple(fixed)
        self._file = file
        self._admin_in_query = admin_in_query
        self._stamp = self._seen = None if file is None else _stamp(file)
        self._look_at = time.monotonic() + WATCH_SECONDS
        self._by_digest = self._index(() if file is None else _read(file))
        self.can_have_admin = file is not None or any("admin" in key.scopes for key in self.listed)
        """Whether there is a key of scope `admin`, or the file may get one."""

    @property
    def listed(self) -> tuple[Key, ...]:
        """All keys, expired ones too."""
        return tuple(self._by_digest.values())

    def check(self, scope: Scope) -> Key:
        """The key that a request was sent with. Raises NotAuthorized, NotPermitted, RouteNotFound."""
        path, method = scope["path"], scope["method"]
        needed = needed_scopes(method, path)
        if needed is PAGE:
            return self._check_page(scope)
        if needed == frozenset() or (self.is_open and not (needed == ADMIN and self.can_have_admin)):
            return NOBODY
        key = self._find(self._sent(scope, needed))
        if needed is None:
            if "admin" not in key.scopes:
                raise RouteNotFound
        elif not needed & key.scopes:
            asked = min(needed - ADMIN or ADMIN)
            raise NotPermitted(f"this key lacks the scope {asked}", asked)
        if key.models and (named := MODEL.match(path)):
            key.check_model(named[1])
        return key

    def _check_page(self, scope: Scope) -> Key:
        """The key that may see what a page shows, or LOCKED; `locked` in the state then says why."""
        path = scope["path"]
        twin = next(found.expand(twin) for page, twin in TWINS.items() if (found := page.fullmatch(path)))
        try:
            return self.check({**scope, "method": "GET", "path": twin})
        except (NotAuthorized, NotPermitted) as error:
            scope["state"]["locked"] = error
            return LOCKED

    def reader(self, scope: Scope) -> Key:
        """The key that says which models a request may hear of where none is needed; without a valid one, LOCKED."""
        try:
            return self.check({**scope, "method": "GET", "path": "/v1/models"})
        except (NotAuthorized, NotPermitted):
            return LOCKED

    def is_admin(self, scope: Scope) -> bool:
        """Whether a request may see what only admins may see."""
        try:
            self.check({**scope, "method": "GET", "path": "/metrics"})
        except (NotAuthorized, NotPermitted):
            return False
        return True

    def _sent(self, scope: Scope, needed: frozenset[str] | None) -> bytes:
        """What the request has been sent with as a key; empty for nothing."""
        headers: HeaderMap = dict(scope["headers"])
        bearer = headers.get(b"authorization", b"")
        if bearer[:7].lower() == b"bearer ":
            sent = bearer[7:].strip()
        else:
            sent = (headers.get(b"x-api-key") or headers.get(b"x-admin-token") or b"").strip()
        if not sent and self._admin_in_query and needed == ADMIN:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            sent = query.get("admin_token", [""])[0].encode("utf-8", "replace")
        return sent

    def _find(self, sent: bytes) -> Key:
        if time.monotonic() >= self._look_at:
            self._look()
        digest = hashlib.sha256(sent).digest() if len(sent) <= MAX_SENT_BYTES else b""
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            _refuse(sent)
        if key.expires is not None and time.time() >= key.expires:
            raise NotAuthorized(f"the key has expired; {USAGE}")
        return key

    def _look(self) -> None:
        """Read the file again if it has changed. A file that cannot be used changes nothing, and is logged once.

        It is read when it is the same at two looks: half an entry may be a key for more than the whole.
        """
        self._look_at = time.monotonic() + WATCH_SECONDS
        if self._file is None:
            return
        before, self._seen = self._seen, _stamp(self._file)
        if not self._seen == before != self._stamp:
            return
        self._stamp = self._seen
        try:
            self._by_digest = self._index(_read(self._file))
        except InvalidSetting as error:
            log.error("Keys not read again", reason=str(error))
        else:
            log.info("Keys read again", keys=len(self._by_digest))

    def _index(self, further: Iterable[Key]) -> dict[bytes, Key]:
        return {key.digest: key for key in (*further, *self._fixed)}


def _refuse(sent: bytes) -> NoReturn:
    raise NotAuthorized(f"the key is not known; {USAGE}" if sent else USAGE)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Changes when the file does; None while there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(file: Path) -> tuple[Key, ...]:
    """The keys of the file. Raises InvalidSetting."""
    try:
        return parse_lines(read_file(file, max_bytes=MAX_FILE_BYTES).decode())
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG):
            raise InvalidSetting("API_KEYS_FILE must be a plain file of at most 1 MB") from None
        raise InvalidSetting(f"API_KEYS_FILE cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidSetting("API_KEYS_FILE is not UTF-8") from None
    except ValueError as error:
        raise InvalidSetting(f"API_KEYS_FILE: {error}") from None


SCHEMES: Mapping[str, Mapping[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key as `Authorization: Bearer KEY`"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key as `X-API-Key: KEY`"},
}


def visible_paths(document: Mapping[str, Any], key: Key) -> dict[str, Any]:
    """The paths of an OpenAPI document without those of models that a key may not use."""
    return {
        path: item
        for path, item in document["paths"].items()
        if not (named := MODEL.match(path)) or named[1].startswith("{") or key.may_use(named[1])
    }


def describe_security(document: dict[str, Any], refusal: Mapping[str, Any], *, is_open: bool) -> None:
    """Add to an OpenAPI document its security schemes, and to each operation its scopes and its refusals.

    `refusal` is the response of one, without a description.
    """
    document.setdefault("components", {})["securitySchemes"] = SCHEMES
    for path, item in document["paths"].items():
        for method, operation in item.items():
            needed = needed_scopes(method.upper(), path)
            if needed is not None and not needed:
                operation["security"] = []
                continue
            scopes = sorted((needed or ADMIN) - ADMIN) or ["admin"]
            listed = scopes if len(scopes) == 1 else []
            ways: list[dict[str, list[str]]] = [{scheme: listed} for scheme in SCHEMES]
            # an empty requirement: also without a key
            operation["security"] = [{}, *ways] if is_open and scopes != ["admin"] else ways
            asked = f"a key of scope {' or '.join(scopes)}"
            operation["responses"] |= {
                "401": {**refusal, "description": f"No key, or one that is unknown or expired; it takes {asked}"},
                "403": {**refusal, "description": f"It takes {asked}, which may use the model"},
            }
