"""Whose address a request is counted under: what clients write into X-Forwarded-For does not matter."""

from __future__ import annotations

import pytest

from serving.http.edge import identify, network_of, packed

PEER = ("10.0.0.9", 50_000)


def client_of(proxies: int, *lines: bytes) -> str:
    scope = {"client": PEER, "headers": [(b"host", b"x"), *((b"x-forwarded-for", line) for line in lines)]}
    identify(scope, proxies)
    client = scope["client"]
    assert isinstance(client, tuple)
    return str(client[0])


def test_without_proxies_the_header_is_not_looked_at() -> None:
    assert client_of(0, b"1.2.3.4") == PEER[0]


def test_the_address_is_counted_from_the_right() -> None:
    assert client_of(1, b"6.6.6.6, 1.2.3.4") == "1.2.3.4"
    assert client_of(2, b"6.6.6.6, 1.2.3.4,10.0.0.1") == "1.2.3.4"
    assert client_of(1, b"6.6.6.6", b"1.2.3.4") == "1.2.3.4", "a header that comes twice is one list"
    assert client_of(2, b"1.2.3.4", b"10.0.0.1") == "1.2.3.4"


@pytest.mark.parametrize("line", [b"", b",", b"unknown", b"1.2.3.4.5", b"1.2.3", b"\xff", b"1.2.3.4\0", b"::g", b"[1"])
def test_nonsense_is_from_whoever_has_connected(line: bytes) -> None:
    assert client_of(1, line) == PEER[0]
    assert client_of(1, b"1.2.3.4," + line) == PEER[0]


def test_too_few_addresses_have_not_come_through_all_proxies() -> None:
    assert client_of(2, b"1.2.3.4") == PEER[0]
    assert client_of(1) == PEER[0]


@pytest.mark.parametrize(
    ("line", "address"),
    [(b"1.2.3.4:5678", "1.2.3.4"), (b"[2001:db8::1]:5678", "2001:db8::1"), (b"2001:db8::1", "2001:db8::1")],
)
def test_some_proxies_add_a_port(line: bytes, address: str) -> None:
    assert client_of(1, line) == address


def test_a_list_of_a_thousand_addresses_is_read_from_its_end() -> None:
    assert client_of(1, b"6.6.6.6," * 5000 + b"1.2.3.4") == "1.2.3.4"


def test_a_network_of_ipv6_is_one_client() -> None:
    def network(address: str) -> bytes:
        return network_of({"client": (address, 1)})

    assert network("2001:db8:1:2::1") == network("2001:db8:1:2:ffff::2") != network("2001:db8:1:3::1")
    assert network("::ffff:1.2.3.4") == network("1.2.3.4") == bytes([1, 2, 3, 4])
    assert network_of({"client": None}) == network_of({}) == b""
    assert packed("localhost") is None
