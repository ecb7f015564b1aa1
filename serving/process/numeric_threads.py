"""Keeps the numeric libraries on one thread; to be called before numpy is first imported.

A pool of OpenMP or BLAS threads that is alive at the fork leaves the children with locks that nobody will ever
release: histogram gradient boosting hangs in them for ever. And with several workers on few cores, many threads each
are an order of magnitude slower than one.
"""

from __future__ import annotations

from collections.abc import MutableMapping

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def limit(environ: MutableMapping[str, str]) -> None:
    """Set every variable to 1, whatever it was: more than one cannot work here."""
    for variable in VARIABLES:
        environ[variable] = "1"
