"""Signatures of values that lie where others may write, such as in Redis.

A signed value travels as version, signature and payload, and nothing in it is executed to be read. The signature is 16
bytes of keyed BLAKE2b over the place and the payload, 1 us a value. It also finds values that are truncated or belong
to another place, as a connection that got out of step would return them.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import blake2b

import msgspec
import structlog

log = structlog.get_logger(__name__)

VERSION = b"\x02"
SIGNATURE_BYTES = 16
HEADER_BYTES = len(VERSION) + SIGNATURE_BYTES


class Seal:
    """Signs with the first of its secrets, and accepts what any of them has signed, so that they can be rotated."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        """Without secrets, values are protected from accidents only."""
        self._keys = [_derive(secret) for secret in secrets or ("",)]
        self._reported: set[str] = set()

    @property
    def marks(self) -> list[str]:
        """A name for each secret, which tells nothing of it; the first is that of the one that signs."""
        return [_signature(key, b"mark", b"").hex() for key in self._keys]

    def sign(self, place: bytes, payload: bytes) -> bytes:
        """Return the signature of what is kept at a place."""
        return _signature(self._keys[0], place, payload)

    def verify(self, place: bytes, payload: bytes, signature: bytes) -> bool:
        """Return whether one of the secrets has signed what is kept at a place."""
        return any(hmac.compare_digest(_signature(key, place, payload), signature) for key in self._keys)

    def close(self, place: bytes, payload: bytes) -> bytes:
        """Return what the server is given to keep at a place."""
        return VERSION + self.sign(place, payload) + payload

    def open(self, place: bytes, sealed: bytes) -> bytes | None:
        """Return the payload, or None if it was not closed for this place with one of the secrets."""
        if sealed[:1] != VERSION or len(sealed) < HEADER_BYTES:
            return None
        payload = sealed[HEADER_BYTES:]
        return payload if self.verify(place, payload, sealed[len(VERSION) : HEADER_BYTES]) else None

    def report(self, kind: str) -> None:
        """Log that something of this kind was ignored, once in the life of a process."""
        if kind not in self._reported:
            self._reported.add(kind)
            log.warning("Redis holds what this service has not signed; it is ignored", kind=kind)


def place_of(*parts: str | int) -> bytes:
    """The place of a value that several names and numbers lead to."""
    return msgspec.msgpack.encode(parts)


def _derive(secret: str) -> bytes:
    return blake2b(secret.encode(errors="surrogateescape"), person=b"forkserve seal").digest()


def _signature(key: bytes, place: bytes, payload: bytes) -> bytes:
    # the length keeps the end of a place from passing as the start of a payload
    content = len(place).to_bytes(4, "big") + place + payload
    return blake2b(content, key=key, digest_size=SIGNATURE_BYTES).digest()
