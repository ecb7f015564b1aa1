"""What is logged of predictions, and for how long: LOG_PREDICTIONS, LOG_PREDICTIONS_KEEP, LOG_PREDICTIONS_REDACT."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

SHARE = re.compile(r"(0?\.[0-9]{1,9}|[01](\.0{1,9})?)")
ROWS, DAYS = re.compile(r"[1-9][0-9]{0,11}"), re.compile(r"([1-9][0-9]{0,4})d")
HASHES = 1 << 32
"""Of request ids there are so many hashes."""


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """What is logged, and how long it is kept."""

    share: float
    """Of all requests; 0 for none."""
    keep_rows: int
    keep_days: int
    redacted: frozenset[str] = frozenset()
    """Columns that are not stored."""

    @classmethod
    def parse(cls, share: str, keep: str, redacted: tuple[str, ...] = ()) -> LogPolicy:
        """Parse the three settings. Raises ValueError, whose message names one."""
        return cls(_parse_share(share), *_parse_keep(keep), frozenset(redacted))

    def logs(self, request_id: str) -> bool:
        """Whether a request is logged: the same for all processes and instances, by a hash of its id."""
        if self.share >= 1.0:
            return True
        return int.from_bytes(blake2b(request_id.encode(), digest_size=4).digest()) < self.share * HASHES


def _parse_share(text: str) -> float:
    if text in ("off", "all"):
        return float(text == "all")
    if not SHARE.fullmatch(text):
        raise ValueError("LOG_PREDICTIONS must be off, all, or a share of the requests between 0 and 1, such as 0.1")
    return float(text)


def _parse_keep(text: str) -> tuple[int, int]:
    words = text.split()
    if len(words) == 2 and ROWS.fullmatch(words[0]) and (days := DAYS.fullmatch(words[1])):
        return int(words[0]), int(days[1])
    raise ValueError("LOG_PREDICTIONS_KEEP must be a number of rows and one of days, such as `1000000 90d`")
