"""Who a request is from: the address of its connection, or what proxies that are known say of it."""

from __future__ import annotations

import socket
from collections.abc import Iterable, MutableMapping
from typing import Any

MAPPED = bytes(10) + b"\xff\xff"
"""What an IPv4 address in IPv6 begins with."""


class Clients:
    """Finds the client's address behind a number of proxies, each of which adds the address it was asked from.

    So the client's is the one that the outermost of them has added, counted from the right; what stands before it the
    client may have written. With less than that, or nonsense, in X-Forwarded-For, the request has not come through all
    of them: then it is from whoever has connected.
    """

    def __init__(self, trusted_proxies: int) -> None:
        self._proxies = trusted_proxies

    def identify(self, scope: MutableMapping[str, Any]) -> None:
        """Write the client's address where ASGI keeps it, for all who look there."""
        if self._proxies:
            given = forwarded_address(scope["headers"], self._proxies)
            if given is not None:
                scope["client"] = (given, 0)


def forwarded_address(headers: Iterable[tuple[bytes, bytes]], proxies: int) -> str | None:
    """The address that X-Forwarded-For has at place `proxies` from the right; None if there is no address."""
    lines = [value for name, value in headers if name == b"x-forwarded-for"]
    if not lines:
        return None
    # of a long list only the end is looked at
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


def network_of(scope: MutableMapping[str, Any]) -> bytes:
    """What counts as one client: an IPv4 address, or a /64 of IPv6, which one line usually has for itself.

    Clients without an address, as over a Unix socket, are one.
    """
    client = scope.get("client")
    return (packed(client[0]) or b"")[:8] if client else b""
