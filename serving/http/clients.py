"""The client of a request: the peer of its connection, or the address that trusted proxies have added."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from starlette.types import Scope

MAPPED = bytes(10) + b"\xff\xff"
"""The first bytes of an IPv4 address written as IPv6."""


def identify(scope: Scope, proxies: int) -> None:
    """Write the client's address into the scope, where ASGI keeps it, as found behind a number of proxies.

    Each appends the address of its peer. The client's address is therefore the one that the outermost proxy has
    appended, counted from the right; the client may have written anything before it. If X-Forwarded-For has too
    few or invalid addresses, the request has not come through all proxies, and the peer of the connection counts.
    """
    given = _forwarded_address(scope["headers"], proxies) if proxies else None
    if given is not None:
        scope["client"] = (given, 0)


def _forwarded_address(headers: Iterable[tuple[bytes, bytes]], proxies: int) -> str | None:
    """The address at place `proxies` from the right of X-Forwarded-For; None if there is none."""
    lines = [value for name, value in headers if name == b"x-forwarded-for"]
    if not lines:
        return None
    # only the end of a long list is split
    parts = b",".join(lines).rsplit(b",", proxies)
    if len(parts) < proxies:
        return None
    address = _without_port(parts[-proxies].strip(b" \t").decode("latin-1"))
    return address if packed(address) is not None else None


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def packed(address: str) -> bytes | None:
    """The bytes of an IP address, 4 or 16; None for anything else."""
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        whole = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return None
    return whole[12:] if whole.startswith(MAPPED) else whole


def network_of(scope: Scope) -> bytes:
    """The network that counts as one client: an IPv4 address, or a /64 of IPv6, which one household usually has.

    All clients without an address, as over a Unix socket, count as one.
    """
    client = scope.get("client")
    return (packed(client[0]) or b"")[:8] if client else b""
