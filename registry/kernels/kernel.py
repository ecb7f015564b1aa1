"""Kernels: Python functions with one signature each, which numba compiles, or loads from its cache, before the fork.

Nothing is compiled at import. `Kernel.load` compiles for exactly one signature, so no request ever waits for the
compiler. `parallel` is not used, because its threads do not survive a fork, nor `fastmath`, which would reorder sums.

numba keeps machine code in NUMBA_CACHE_DIR, else beside the source, else in the user's cache directory, and discards
code of another source, processor or version. A cache that cannot be read or written costs the time to compile, never
the start. Damage inside an otherwise valid file is not noticed.

Measured on Python 3.12 with numba 0.68 (`python -m bench.kernels`): the import takes 0.14 s and 53 MB of RSS, 18 MB of
them private. Loading all kernels takes 0.2 s from the cache (102 MB of RSS in all, 35 MB private), 4 s without (141
and 68 MB). The rest is code of the library. It is paid once, in the master. No thread is started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import structlog
from numba import types
from numba.extending import register_jitable

log = structlog.get_logger(__name__)

KNOWN_LIBRARIES = frozenset({"catboost", "imblearn", "lightgbm", "registry", "sklearn", "xgboost"})
"""A class from anywhere else is called Python code."""

Function = TypeVar("Function", bound=Callable[..., Any])


def part_of_kernel(function: Function) -> Function:
    """Let kernels call `function`, which is compiled into them.

    It must be defined in the kernel's own file: numba discards its cache when that file changes, and checks no other.
    It is always inlined: LLVM decides otherwise for functions of many arrays, which are passed as seven numbers each.
    """
    register_jitable(forceinline=True)(function)
    return function


def read_only(dtype: Any, dimensions: int) -> Any:
    """The type of a C-contiguous array that a kernel only reads; it accepts writable arrays, too."""
    return types.Array(dtype, dimensions, "C", readonly=True)


def writable(dtype: Any, dimensions: int) -> Any:
    """The type of a C-contiguous array that a kernel fills."""
    return types.Array(dtype, dimensions, "C")


def records(dtype: Any) -> Any:
    """The type of an array of numpy's records that a kernel only reads."""
    return read_only(numba.from_dtype(dtype), 1)


NUMBERS, MATRIX, OUT = read_only(types.float64, 1), read_only(types.float64, 2), writable(types.float64, 2)
"""Types of float64 arrays: of one and two dimensions to read, of two to fill."""


class Kernel:
    """A function of arrays, and the one signature that it is compiled for.

    One that makes no arrays itself (`allocates` is False) counts no references to those that it is given, which takes
    longer than the sums in a function of a dozen of them.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any, allocates: bool = True) -> None:
        self.function = function
        self.signature = types.void(*arguments)
        self.allocates = allocates
        self._compiled: Callable[..., None] | None = None

    def load(self) -> Callable[..., None]:
        """The compiled function; the first call compiles it or reads it from the cache."""
        if self._compiled is None:
            try:
                self._compiled = self._jit(cache=True)
            except Exception as error:  # noqa: BLE001 - a broken cache may raise anything; a broken kernel raises again
                reason = f"{type(error).__name__}: {error}"
                log.warning("Kernel cache not used", kernel=self.function.__name__, reason=reason)
                self._compiled = self._jit(cache=False)
        return self._compiled

    def _jit(self, *, cache: bool) -> Callable[..., None]:
        compile_for: Any = numba.njit  # whose types leave out `_nrt`
        compiled: Callable[..., None] = compile_for(self.signature, nogil=True, cache=cache, _nrt=self.allocates)(
            self.function
        )
        return compiled


class Unsupported(Exception):
    """An estimator has no compiled form; the message says why, in words that end "not compiled: ...".

    Never leaves `kernels`, `explain` and the loader.
    """


def no_form(role: str, part: Any) -> str:
    """Why a part of a model, such as "the step", is not compiled, if nothing is known about its class."""
    name = type(part).__name__
    if type(part).__module__.partition(".")[0] in KNOWN_LIBRARIES:
        return f"{role} {name} has no compiled form"
    return f"{role} {name} is Python code"
