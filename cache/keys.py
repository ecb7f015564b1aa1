"""Keys of rows: equal keys mean equal answers, bit for bit."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 24
"""192 bits: no two rows with one key will be found. In memory 24 bytes take no more than 16 would."""

NEGATIVE_ZERO = bytes(7) + b"\x80"

FLOAT64 = np.dtype("<f8")

Rows = NDArray[Any]

_encode = msgspec.msgpack.Encoder().encode


def key_prefix(*parts: str | bytes) -> bytes:
    """Return a digest of all that an answer depends on besides its row: operation, content hash, parameters.

    Computed once per model and operation. The boundaries of parts count: ("a", "bc") and ("ab", "c") differ.
    """
    digest = sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.digest()


def row_keys(prefix: bytes, rows: Rows, *, merge_zeros: bool, merge_nans: bool = True) -> list[bytes]:
    """Return one key per row, for rows of shape (rows, features); SHA-256, as processors have instructions for it."""
    if rows.dtype == object:
        return [sha256(prefix + _encode(row)).digest()[:KEY_BYTES] for row in rows.tolist()]
    content = canonical_bytes(rows, merge_zeros=merge_zeros, merge_nans=merge_nans)
    width = rows.shape[1] * 8
    return [
        sha256(prefix + content[start : start + width]).digest()[:KEY_BYTES] for start in range(0, len(content), width)
    ]


def canonical_bytes(rows: Rows, *, merge_zeros: bool, merge_nans: bool = True) -> bytes:
    """Return the rows as little-endian bytes, in which values that the model cannot tell apart are equal.

    `merge_zeros` turns -0.0 into 0.0: only for a model that compares its input and never computes with it (a decision
    tree, alone or in an ensemble, for which -0.0 <= t is 0.0 <= t). Where the input is multiplied, divided by or
    transformed, the sign of a zero can reach the answer's bits (1 / -0.0, or the sign of a product that is zero), so
    the two must keep two keys. `merge_nans` turns every NaN into the same NaN; omit it only where there is none.
    """
    content = np.asarray(rows, FLOAT64).tobytes()
    merge_zeros = merge_zeros and NEGATIVE_ZERO in content  # cheap to check, and most rows hold none
    if not merge_zeros and not merge_nans:
        return content
    values = np.frombuffer(content, FLOAT64) + (0.0 if merge_zeros else -0.0)
    if merge_nans:
        values[np.isnan(values)] = np.nan
    return values.tobytes()
