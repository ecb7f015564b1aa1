"""What a client prefers (RFC 9110, 12): media types and content codings with quality values."""

from __future__ import annotations

import re
from functools import lru_cache

MAX_HEADER_BYTES = 1024
"""What stands further back in a header is not looked at."""

ELEMENT = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
PARAMETER = re.compile(rb'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+')
QUALITY = re.compile(rb"q[ \t]*=[ \t]*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def preferred(header: bytes | None, offers: tuple[bytes, ...]) -> bytes:
    """The offered media type that an Accept header likes best; the first if there is no header or it likes none.

    Of two that it likes alike, the one that it names more exactly, then the one that it names first.
    """
    if header is None or header == b"*/*" or header == offers[0]:
        return offers[0]
    return _preferred(header[:MAX_HEADER_BYTES], offers)


@lru_cache(maxsize=128)
def _preferred(header: bytes, offers: tuple[bytes, ...]) -> bytes:
    ranges = qualities(header)
    ranked = [(_rank(ranges, offer), offer) for offer in offers]
    (quality, *_), best = max(ranked, key=lambda one: one[0])
    return best if quality else offers[0]


def _rank(ranges: list[tuple[bytes, float]], offer: bytes) -> tuple[float, int, int]:
    """Quality, exactness and negative place of the most exact range that includes `offer`."""
    family = offer.partition(b"/")[0] + b"/*"
    for exactness, name in ((3, offer), (2, family), (1, b"*/*")):
        for place, (listed, quality) in enumerate(ranges):
            if listed == name:
                return quality, exactness, -place
    return 0.0, 0, 0


CODINGS = (b"zstd", b"gzip")
"""Codings of answers, the quicker one first."""


def coding_of(header: bytes | None) -> bytes:
    """The content coding that an Accept-Encoding header likes best, as CODINGS has it; empty for none."""
    return b"" if header is None else _coding_of(header[:MAX_HEADER_BYTES])


@lru_cache(maxsize=128)
def _coding_of(header: bytes) -> bytes:
    named = {name.removeprefix(b"x-"): quality for name, quality in qualities(header)}
    others = named.get(b"*", 0.0)
    best = max(CODINGS, key=lambda coding: named.get(coding, others))
    quality = named.get(best, others)
    # without compression an answer is always acceptable, if the header does not say how much
    return best if quality > 0 and quality >= named.get(b"identity", 0.0) else b""


def qualities(header: bytes) -> list[tuple[bytes, float]]:
    """The names of a list in lower case with their quality, without other parameters; 0 for an invalid one."""
    found = []
    for element in ELEMENT.findall(header):
        name, *parameters = (part.strip() for part in PARAMETER.findall(element) or [b""])
        weights = [part for part in parameters if part[:1] in b"qQ" and part[1:].lstrip()[:1] == b"="]
        quality = QUALITY.fullmatch(weights[-1]) if weights else None
        if name:
            found.append((name.lower(), 1.0 if not weights else float(quality[1]) if quality else 0.0))
    return found
