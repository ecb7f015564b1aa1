"""Estimators that misbehave on purpose; importable, so that a service can unpickle them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin


class SleepingRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Takes as many seconds for a row as the row's first feature says, and answers that."""

    def fit(self, X: Any, _y: Any) -> SleepingRegressor:  # noqa: N803 - scikit-learn's names
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        time.sleep(float(np.sum(X[:, 0])))
        return X[:, 0]


class FragileRegressor(SleepingRegressor):
    """Answers the first feature, but breaks on what is above 1: by an exception, above 2 by a result that is NaN."""

    SECRET = "the-words-of-an-exception"

    def predict(self, X: Any) -> Any:  # noqa: N803
        if (X > 2).any():
            return X[:, 0] * np.nan
        if (X > 1).any():
            raise KeyError(self.SECRET)
        return X[:, 0]


class OverflowingRegressor(SleepingRegressor):
    """Answers the first feature; what is above 2 is too large for it."""

    def predict(self, X: Any) -> Any:  # noqa: N803
        return np.where(X[:, 0] > 2, np.inf, X[:, 0])


class DeadlyRegressor(SleepingRegressor):
    """Answers the first feature, but ends its process at what is above 1."""

    def predict(self, X: Any) -> Any:  # noqa: N803
        if (X > 1).any():
            os._exit(3)
        return X[:, 0]


class GreedyRegressor(SleepingRegressor):
    """Needs as many megabytes for a row as the row's first feature says, and answers that."""

    def predict(self, X: Any) -> Any:  # noqa: N803
        taken = [np.ones(int(amount) << 17) for amount in X[:, 0]]
        return X[:, 0] + 0.0 * len(taken)


class PonderingRegressor(SleepingRegressor):
    """Takes more than a second for several rows, as an explanation asks for, and no time for one."""

    def predict(self, X: Any) -> Any:  # noqa: N803
        time.sleep(1.1 if len(X) > 1 else 0.0)
        return X[:, 0]


class ForkShyRegressor(SleepingRegressor):
    """Predicts only in the process that has unpickled it."""

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.home = os.getpid()

    def predict(self, X: Any) -> Any:  # noqa: N803
        if getattr(self, "home", os.getpid()) != os.getpid():
            raise RuntimeError("this is another process")
        return super().predict(X)


class ExplainShyRegressor(ForkShyRegressor):
    """Predicts a single row anywhere, but several, as an explanation asks for, only at home."""

    def predict(self, X: Any) -> Any:  # noqa: N803
        return X[:, 0] if len(X) == 1 else super().predict(X)


class HarmfulRegressor(SleepingRegressor):
    """Does harm to the process that unpickles it, as soon as the file is there that it was given."""

    def __init__(self, trigger: str = "") -> None:
        self.trigger = trigger

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if Path(self.trigger).exists():
            self.harm()

    def harm(self) -> None: ...


class CrashingRegressor(HarmfulRegressor):
    """A segmentation fault."""

    def harm(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class EndingRegressor(HarmfulRegressor):
    """The end of the process."""

    def harm(self) -> None:
        os._exit(3)  # what gunicorn takes for a worker that cannot boot


class HangingRegressor(HarmfulRegressor):
    """No end at all."""

    def harm(self) -> None:
        threading.Event().wait()


class ThreadedRegressor(HarmfulRegressor):
    """A thread that is left running."""

    def harm(self) -> None:
        self.thread = start_thread()

    def __getstate__(self) -> Any:
        return {name: value for name, value in super().__getstate__().items() if name != "thread"}


def start_thread() -> threading.Thread:
    """A thread that lives as long as the process."""
    thread = threading.Thread(target=threading.Event().wait, daemon=True, name="left-running")
    thread.start()
    return thread


class LeakingRegressor(SleepingRegressor):
    """Answers the first feature, and keeps a megabyte for every row, if any is above 1."""

    KEPT: ClassVar[list[bytes]] = []

    def predict(self, X: Any) -> Any:  # noqa: N803
        if (X > 1).any():
            self.KEPT.append(b"x" * 1_000_000 * len(X))
        return X[:, 0]
