"""The setting SCHEDULES: `name: when [in zone] [grace seconds]: action arguments`, separated by semicolons."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from serving.errors import InvalidSetting
from serving.jobs.job import JobRequest
from serving.schedules.when import CRON_FIELDS, When, parse_cron, parse_every

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
GRACE_SECONDS = (1.0, 604_800.0)
"""The least and the most; all firings within a grace are counted one by one."""


@dataclass(frozen=True, slots=True)
class Action:
    """An action of schedules: `request` makes a job of the words that follow the action's name."""

    request: Callable[..., JobRequest]
    known: tuple[str, ...] | None = None
    """The words that may follow, where they are known; None for any."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job to submit at certain times; one that is more than `grace` seconds late is missed."""

    name: str
    when: When
    action: Action
    arguments: tuple[str, ...]
    grace: float
    text: str
    """The action and its arguments, as written."""


def parse_schedules(text: str, actions: Mapping[str, Action], *, grace: float) -> tuple[Schedule, ...]:
    """The entries of SCHEDULES; `grace` is for those that name none. Raises InvalidSetting naming the wrong entry."""
    schedules: dict[str, Schedule] = {}
    for entry in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        try:
            schedule = _parse(entry, actions, grace)
        except ValueError as error:
            raise InvalidSetting(f"SCHEDULES: {entry.partition(':')[0].strip()[:80]!r}: {error}") from None
        if schedule.name in schedules:
            raise InvalidSetting(f"SCHEDULES: {schedule.name!r}: appears twice")
        schedules[schedule.name] = schedule
    return tuple(schedules.values())


def _parse(entry: str, actions: Mapping[str, Action], grace: float) -> Schedule:
    parts = [part.strip() for part in entry.split(":", 2)]
    if len(parts) != 3:
        raise ValueError("an entry is like 'nightly: 0 3 * * *: train churn'")
    name, timing, doing = parts
    if not NAME.fullmatch(name):
        raise ValueError("a name has up to 63 lower-case letters, digits, '.', '_' and '-'")
    when, own_grace = _parse_timing(timing.split())
    verb, *arguments = doing.split() or [""]
    if verb not in actions:
        raise ValueError(f"unknown action {verb[:40]!r}; use {', '.join(sorted(actions))}")
    _check_arguments(verb, actions[verb], arguments)
    text = " ".join((verb, *arguments))
    return Schedule(name, when, actions[verb], tuple(arguments), grace if own_grace is None else own_grace, text)


def _parse_timing(words: list[str]) -> tuple[When, float | None]:
    count = 2 if words[:1] == ["every"] else CRON_FIELDS
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
            raise ValueError(f"only 'in ZONE' and 'grace SECONDS' may follow the time, not {' '.join(words)!r}")
        yield option, value


def _parse_grace(text: str) -> float:
    low, high = GRACE_SECONDS
    try:
        grace = float(text)
    except ValueError:
        grace = -1.0
    if not low <= grace <= high:
        raise ValueError(f"grace must be a number of seconds from {low:g} to {high:g}")
    return grace


def _check_arguments(verb: str, action: Action, arguments: list[str]) -> None:
    signature = inspect.signature(action.request)
    try:
        signature.bind(*arguments)
    except TypeError:
        usage = " ".join((verb, *(name.upper() for name in signature.parameters)))
        raise ValueError(f"the action is written {usage!r}") from None
    for argument in arguments:
        if action.known is not None and argument not in action.known:
            known = ", ".join(action.known) or "none"
            raise ValueError(f"{verb} knows no {argument[:40]!r}; it knows {known}")
