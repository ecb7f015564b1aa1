"""The schedules of the settings: `name: when [in zone] [grace seconds]: action arguments`, with semicolons between."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from serving.errors import InvalidSetting
from serving.jobs.job import JobRequest
from serving.schedules.when import FIELDS, When, parse_cron, parse_every

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
GRACE = (1.0, 604_800.0)
"""A week: all firings of that time are counted one by one."""

ACTION_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Queued:
    """An action that is a job: a runner does it. `make` gives the request for it, from the words after the action."""

    make: Callable[..., JobRequest]


@dataclass(frozen=True, slots=True)
class Called:
    """An action that the scheduler does itself, on its event loop: something that waits more than it computes.

    It is cancelled after `seconds`, and may be done again when its process has died on the way.
    """

    call: Callable[..., Awaitable[None]]
    seconds: float = ACTION_SECONDS
    words: tuple[str, ...] | None = None
    """What may stand after the action, where that is known; None for anything."""


Action = Queued | Called


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is done at which times; a firing that comes later than `grace` seconds is not done."""

    name: str
    when: When
    action: Action
    arguments: tuple[str, ...]
    grace: float
    text: str
    """The action and its arguments, as they were written."""


def parse_schedules(text: str, actions: Mapping[str, Action], *, grace: float) -> tuple[Schedule, ...]:
    """The entries of `SCHEDULES`. Raises InvalidSetting naming the first that cannot be."""
    schedules: dict[str, Schedule] = {}
    for entry in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        try:
            schedule = _parse(entry, actions, grace)
        except ValueError as error:
            raise InvalidSetting(f"SCHEDULES: {entry.partition(':')[0].strip()[:80]!r}: {error}") from None
        if schedule.name in schedules:
            raise InvalidSetting(f"SCHEDULES: {schedule.name!r}: is there twice")
        schedules[schedule.name] = schedule
    return tuple(schedules.values())


def _parse(entry: str, actions: Mapping[str, Action], grace: float) -> Schedule:
    parts = [part.strip() for part in entry.split(":", 2)]
    if len(parts) != 3:
        raise ValueError("an entry is like 'nightly: 0 3 * * *: train churn'")
    name, timing, doing = parts
    if not NAME.fullmatch(name):
        raise ValueError("a name has up to 63 small letters, digits, '.', '_' and '-'")
    when, own_grace = _parse_timing(timing.split())
    verb, *arguments = doing.split() or [""]
    action = actions.get(verb)
    if action is None:
        raise ValueError(f"there is no action {verb[:40]!r}; there are {', '.join(sorted(actions))}")
    _check_arguments(verb, action, arguments)
    text = " ".join((verb, *arguments))
    return Schedule(name, when, action, tuple(arguments), grace if own_grace is None else own_grace, text)


def _parse_timing(words: list[str]) -> tuple[When, float | None]:
    count = 2 if words[:1] == ["every"] else FIELDS
    timing, options = words[:count], dict(_options(words[count:]))
    if len(timing) < count:
        raise ValueError(f"{' '.join(words)!r} is neither a cron expression of five fields nor 'every 30s'")
    grace = _parse_grace(options.pop("grace")) if "grace" in options else None
    if timing[0] == "every":
        if options:
            raise ValueError("'every' has no time zone")
        return parse_every(timing[1]), grace
    return parse_cron(" ".join(timing), options.get("in", "UTC")), grace


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    for option, value in zip(words[::2], [*words[1::2], ""], strict=False):
        if option not in ("in", "grace") or not value:
            raise ValueError(f"after the time may come 'in ZONE' and 'grace SECONDS', not {' '.join(words)!r}")
        yield option, value


def _parse_grace(text: str) -> float:
    low, high = GRACE
    try:
        grace = float(text)
    except ValueError:
        grace = -1.0
    if not low <= grace <= high:
        raise ValueError(f"grace must be a number of seconds from {low:g} to {high:g}")
    return grace


def _check_arguments(verb: str, action: Action, arguments: list[str]) -> None:
    signature = inspect.signature(action.make if isinstance(action, Queued) else action.call)
    try:
        signature.bind(*arguments)
    except TypeError:
        usage = " ".join((verb, *(name.upper() for name in signature.parameters)))
        raise ValueError(f"the action is written {usage!r}") from None
    if isinstance(action, Called) and action.words is not None:
        for argument in arguments:
            if argument not in action.words:
                known = ", ".join(action.words) or "none"
                raise ValueError(f"there is no {argument[:40]!r} to {verb}; there are {known}")
