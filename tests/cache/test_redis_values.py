"""The form of values in Redis: a value that is not exactly what was sealed is none."""

from __future__ import annotations

import json
import pickle
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.storage.seal import HEADER_BYTES, VERSION, Seal

SECRETS = ("a secret of sixteen", "another of sixteen")
SEAL = Seal(SECRETS)
seal, unseal = SEAL.close, SEAL.open


@given(key=st.binary(), payload=st.binary())
def test_what_was_sealed_comes_back(key: bytes, payload: bytes) -> None:
    assert unseal(key, seal(key, payload)) == payload


@given(payload=st.binary(max_size=100), data=st.data())
def test_no_flipped_bit_goes_unnoticed(payload: bytes, data: st.DataObject) -> None:
    sealed = bytearray(seal(b"key", payload))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    assert unseal(b"key", bytes(sealed)) is None


def test_nothing_cut_off_goes_unnoticed() -> None:
    sealed = seal(b"key", b"payload")
    assert [unseal(b"key", sealed[:length]) for length in range(len(sealed))] == [None] * len(sealed)
    assert unseal(b"key", sealed + b"\0") is None


def test_value_of_another_key_is_refused() -> None:
    assert unseal(b"other", seal(b"key", b"payload")) is None


def test_end_of_the_key_is_not_the_start_of_the_payload() -> None:
    sealed = seal(b"ab", b"cd")
    assert unseal(b"a", sealed[:HEADER_BYTES] + b"bcd") is None


def test_value_of_another_version_is_refused() -> None:
    sealed = seal(b"key", b"payload")
    assert sealed.startswith(VERSION)
    assert unseal(b"key", b"\x01" + sealed[1:]) is None


@pytest.mark.parametrize("garbage", [b"", b"x", pickle.dumps({"a": 1}), json.dumps([1]).encode(), zlib.compress(b"x")])
def test_what_others_write_is_refused(garbage: bytes) -> None:
    assert unseal(b"key", garbage) is None


def test_only_who_knows_a_secret_can_write_values_and_older_secrets_are_read() -> None:
    new, old, none = Seal(SECRETS[:1]), Seal(SECRETS[1:]), Seal()
    assert [SEAL.open(b"key", one.close(b"key", b"1")) for one in (new, old, none)] == [b"1", b"1", None]
    assert [one.open(b"key", SEAL.close(b"key", b"1")) for one in (new, old, none)] == [b"1", None, None]
