"""Keeps estimators to one thread: themselves, and every estimator that they hold, however deep.

A thread pool that is alive at the fork leaves children with locks that are never released. LightGBM passes the number
of threads to OpenMP with every call, whatever OMP_NUM_THREADS says; CatBoost does not even ask its own parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

THREADS = frozenset({"n_jobs", "nthread", "nthreads", "num_thread", "num_threads", "thread_count"})
"""Names of parameters that say how many threads to use."""

EXTRA_PARAMETERS = ("_other_params", "kwargs")
"""Where LightGBM and XGBoost keep parameters that they do not declare."""

CATBOOST_CALLS = ("predict", "predict_proba", "predict_log_proba", "get_feature_importance")
"""Calls of CatBoost that use all processors unless they are told otherwise."""

MAX_VALUES = 1_000_000
"""Values looked at inside of one estimator; whatever lies beyond keeps its threads, which a trial notices."""

LEAVES = (str, bytes, int, float, complex, type, FunctionType, ModuleType, np.generic, type(None))
OPAQUE = ("numpy", "pandas", "scipy")
"""Packages whose objects hold no estimators."""


def keep_to_one_thread(estimator: Any) -> None:
    """Let an estimator, and all that it holds, predict in the calling thread, however many it was fitted with."""
    for part in parts_of(estimator):
        _keep_part(part, lambda *_undo: None)


@contextmanager
def in_one_thread(estimator: Any) -> Iterator[None]:
    """Like `keep_to_one_thread`, for a while: the estimator is its owner's, who may fit it again."""
    with ExitStack() as undoing:
        for part in parts_of(estimator):
            _keep_part(part, undoing.callback)
        yield


def parts_of(estimator: Any) -> Iterator[Any]:
    """An estimator and all objects inside of it, each once: its parameters, what it was fitted with, its steps.

    Lists, dictionaries, arrays of objects, methods and partial functions are looked into. At most MAX_VALUES are.
    """
    waiting, seen, count = [estimator], {id(estimator)}, 0
    while waiting:
        value = waiting.pop()
        if _is_object(value):
            yield value
        for inner in _inside(value):
            count += 1
            if count > MAX_VALUES:
                return
            if not isinstance(inner, LEAVES) and id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, np.ndarray):
        return value.ravel().tolist() if value.dtype == object else ()
    if isinstance(value, MethodType):
        return (value.__self__,)
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    return vars(value).values() if _is_object(value) else ()


def _is_object(value: Any) -> bool:
    kind = type(value)
    opaque = kind.__module__.split(".", maxsplit=1)[0] in OPAQUE
    return (
        not opaque and not issubclass(kind, dict | list | tuple | MethodType | partial) and hasattr(value, "__dict__")
    )


def _keep_part(part: Any, on_undo: Callable[..., object]) -> None:
    """Set what says how many threads one object uses; `on_undo` is given what takes each change back."""
    values = vars(part)
    for holder in (values, *(values.get(name) for name in EXTRA_PARAMETERS)):
        if isinstance(holder, dict):
            for name in THREADS.intersection(holder):
                on_undo(holder.__setitem__, name, holder[name])
                holder[name] = 1
    for name in THREADS:
        if isinstance(getattr(type(part), name, None), property):
            with suppress(Exception):  # one that cannot be set, or that fails: a trial notices the threads
                before = getattr(part, name)
                setattr(part, name, 1)
                on_undo(setattr, part, name, before)
    if type(part).__module__.startswith("catboost."):
        for name in CATBOOST_CALLS:
            with suppress(AttributeError):
                setattr(part, name, partial(getattr(part, name), thread_count=1))
                on_undo(delattr, part, name)
