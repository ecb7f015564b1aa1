"""Named statements in files: SQL and Lua are kept in files of their own, beside the module that runs them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def statements(module: str, file: str) -> Callable[[str], str]:
    """A function from names to the statements of a `.sql` or `.lua` file, which lies beside the file `module`.

    In the file each statement follows a line `-- name: NAME`; what precedes the first name is for the reader alone.
    The file is read once, when a statement of it is first needed.
    """

    @cache
    def read() -> dict[str, str]:
        parts = NAME.split(Path(module).with_name(file).read_text(encoding="utf-8"))
        return dict(zip(parts[1::2], parts[2::2], strict=True))

    return lambda name: read()[name]
