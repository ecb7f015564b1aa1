"""How a value travels through Redis: version, checksum, payload, and nothing that would have to be executed to be read.

The checksum is 8 bytes of BLAKE2b over key and payload, 1 us a value; CRC-32 would save half of it. It finds what is
truncated, altered or written by something else, and also the answer to another key, as a connection would give that got
out of step. With a secret it is a MAC: then nobody who can only write to Redis can plant a value.
"""

from __future__ import annotations

import hmac
from hashlib import blake2b

VERSION = b"\x01"
CHECKSUM_BYTES = 8
HEADER_BYTES = len(VERSION) + CHECKSUM_BYTES


def seal(key: bytes, payload: bytes, secret: bytes = b"") -> bytes:
    """What Redis is given to keep. `secret` is at most 64 bytes."""
    return VERSION + _checksum(key, payload, secret) + payload


def unseal(key: bytes, sealed: bytes, secret: bytes = b"") -> bytes | None:
    """The payload, or None when this version did not write it under this key with this secret."""
    if sealed[:1] != VERSION or len(sealed) < HEADER_BYTES:
        return None
    payload = sealed[HEADER_BYTES:]
    intact = hmac.compare_digest(sealed[len(VERSION) : HEADER_BYTES], _checksum(key, payload, secret))
    return payload if intact else None


def _checksum(key: bytes, payload: bytes, secret: bytes) -> bytes:
    # the length keeps the end of a key from passing as the start of a payload
    content = len(key).to_bytes(4, "big") + key + payload
    return blake2b(content, digest_size=CHECKSUM_BYTES, key=secret).digest()
