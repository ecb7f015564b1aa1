"""Named statements in files: SQL and Lua are kept in files of their own, beside the module that runs them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def statements(path: Path) -> Mapping[str, str]:
    """The statements of a `.sql` or `.lua` file by name; each follows a line `-- name: NAME`.

    A file is read once, when a statement of it is first needed. What precedes the first name is for the reader alone.
    """
    parts = NAME.split(path.read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))
