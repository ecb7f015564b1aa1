"""Chunks of bytes in a file without a name: the inputs of a job, or its result, without all of it in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from tempfile import TemporaryFile
from typing import IO, overload


class Chunks(Sequence[bytes]):
    """Bytes that are read from a file when they are asked for; the file is closed with the last reference."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 - for as long as this
        self._ends = [0]
        self.rows = 0
        """Rows in all chunks, where that was counted."""

    def __del__(self) -> None:
        self._file.close()

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(end - start for start, end in zip(self._ends, self._ends[1:], strict=False))

    def append(self, chunk: bytes) -> None:
        """Add a chunk at the end."""
        self._file.seek(self._ends[-1])
        self._file.write(chunk)
        self._ends.append(self._ends[-1] + len(chunk))

    def were_written(self, sizes: Iterable[int], rows: int) -> None:
        """Another process has written chunks of these sizes into the file of `rewound`, and nothing else was there."""
        self._ends = [0, *accumulate(sizes)]
        self.rows = rows

    def rewound(self) -> IO[bytes]:
        """The file, to be read or written from its beginning by another process."""
        self._file.flush()
        self._file.seek(0)
        return self._file

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number])
