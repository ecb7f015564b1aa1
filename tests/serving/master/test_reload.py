"""When the master takes a change in the model directory for one that it should load, and what ends a reload early."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serving.app import Application
from serving.master import prefork, reload
from serving.master.reload import LOOK_SECONDS, Interrupted, ModelWatch
from serving.shared.reloads import Reloads


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reload, "time", clock)
    return clock


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "wine/1/manifest.json")
    return tmp_path


def write(root: Path, path: str, content: str = "{}") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


def look(watch: ModelWatch, clock: Clock) -> bool:
    clock.now += LOOK_SECONDS
    return watch.changed()


def test_a_change_is_seen_once_it_has_been_still_from_one_look_to_the_next(root: Path, clock: Clock) -> None:
    watch = ModelWatch(root)
    assert [look(watch, clock), look(watch, clock)] == [False, False]
    write(root, "wine/2/model.joblib", "half")
    assert not look(watch, clock)
    write(root, "wine/2/model.joblib", "half and half")
    assert not look(watch, clock)
    write(root, "wine/2/manifest.json")
    assert not look(watch, clock)
    assert look(watch, clock)


def test_what_has_been_loaded_or_refused_is_not_seen_again(root: Path, clock: Clock) -> None:
    watch = ModelWatch(root)
    write(root, "wine/2/manifest.json")
    assert [look(watch, clock), look(watch, clock)] == [False, True]
    watch.note()
    assert [look(watch, clock), look(watch, clock)] == [False, False]
    write(root, "wine/aliases.json")
    assert [look(watch, clock), look(watch, clock)] == [False, True]


def test_what_changes_while_the_models_are_loaded_is_seen_afterwards(root: Path, clock: Clock) -> None:
    watch = ModelWatch(root)
    write(root, "wine/2/manifest.json")
    watch.note()
    write(root, "wine/3/manifest.json")
    assert [look(watch, clock), look(watch, clock)] == [False, True]


def test_the_directory_is_read_at_most_once_in_an_interval(
    root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = ModelWatch(root)
    assert not look(watch, clock)

    def read(_root: Path) -> None:
        pytest.fail("read again")

    monkeypatch.setattr(reload, "fingerprint", read)
    clock.now += 0.9 * LOOK_SECONDS
    assert not watch.changed()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("is_blocked", [False, True])
@pytest.mark.parametrize("is_caught", [False, True])
def test_a_signal_that_ends_the_service_ends_a_reload_whatever_it_is_doing(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, *, is_blocked: bool, is_caught: bool
) -> None:
    reloads, seen = Reloads(), list[int]()
    app = cast("Application", SimpleNamespace(service=SimpleNamespace(shared=SimpleNamespace(reloads=reloads))))

    def renew(_app: Any, _meanwhile: Any) -> Any:
        try:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # an impatient operator
            signal.pause()
        except BaseException:
            if not is_caught:
                raise
        return app, ()

    monkeypatch.setattr(reload, "renew", renew)
    monkeypatch.setattr(prefork, "warm", lambda _app: None)
    monkeypatch.setattr(prefork, "check_single_thread", lambda: None)
    handler = signal.signal(number, lambda number, _frame: seen.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number} if is_blocked else ())
    try:
        with pytest.raises(Interrupted) as raised:
            reload.reload(app, lambda: None)
        assert (number in signal.pthread_sigmask(signal.SIG_BLOCK, ())) is is_blocked
        assert signal.getsignal(number)(number, None) is None  # type: ignore[operator,misc]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(number, handler)
    assert raised.value.number == number
    assert set(seen) == {number}
    assert reloads.finished == 1
    assert reloads.last().refused == ("the service is stopping",)
