"""Commands for who operates the service: before a deploy, after it, and in between."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from serving.cli.terminal import progress, say
from serving.errors import CannotServe, InvalidSetting
from serving.settings import Settings

COUNTED = ("fired", "missed", "coalesced", "overlaps_prevented", "failed", "overlap_incidents")


def check(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Verify models, settings and the fork before a deploy; a line a fault."""
    from serving.app import build_alerts, build_shared, read_schedules
    from serving.cli.check import find_faults
    from serving.storage.redis import InvalidRedisUrl

    faults = find_faults(settings)
    try:
        build_shared(settings, build_alerts(settings))
        read_schedules(settings)
    except (InvalidSetting, InvalidRedisUrl, CannotServe) as error:
        faults.append(str(error))
    for fault in faults:
        say(f"forkserve: {fault}", file=sys.stderr)
    if not faults:
        say("ready to serve")
    return 1 if faults else 0


def verify(arguments: argparse.Namespace, settings: Settings) -> int:
    """Ask a running service for one of everything it is there for, after a deploy; a line a finding."""
    from serving.cli.remote import RemoteService
    from serving.cli.verify import verify as look

    faults = 0
    with RemoteService(arguments.url or local(settings), settings.admin_token) as service:
        for finding in look(service, wait_seconds=arguments.wait, max_memory_mb=arguments.max_memory_mb):
            say(
                f"{'FAULT' if finding.fault else 'ok':5}  {finding.subject:32} {finding.fault or finding.note}".rstrip()
            )
            faults += bool(finding.fault)
    say(f"forkserve: {faults} faults", file=sys.stderr) if faults else say("all is well")
    return 1 if faults else 0


def load_test(arguments: argparse.Namespace, settings: Settings) -> int:
    """Send a running service as many requests as it answers for some seconds, and say how that went."""
    from serving.cli.errors import Unreachable
    from serving.cli.load_test import Plan, run
    from serving.cli.remote import RemoteService

    plan = Plan(
        seconds=arguments.seconds,
        connections=arguments.connections,
        explained=arguments.explained,
        repeated=arguments.repeated,
        models=tuple(arguments.models),
    )
    try:
        with RemoteService(arguments.url or local(settings), settings.admin_token) as service:
            report = run(service, plan, progress)
    except Unreachable as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    progress("")
    for line in report.lines():
        say(line)
    return 0 if report.tally.failed == 0 else 1


def local(settings: Settings) -> str:
    """Where the service of these settings is, on this machine."""
    return f"http://127.0.0.1:{settings.port}"


def schedules(_arguments: argparse.Namespace, settings: Settings) -> int:
    """List what fires when, next and last, and how often it did."""
    from serving.app import build_alerts, build_shared, build_timetable

    shared = build_shared(settings, build_alerts(settings))
    timetable = build_timetable(settings, shared)

    async def read() -> list[dict[str, Any]]:
        try:
            return await timetable.rows()
        finally:
            await shared.jobs.close()

    for row in asyncio.run(read()):
        counts = ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in COUNTED if row.get(name))
        when, what = f"{row['when']:40}", f"{row['action']:24}"
        say(f"{row['name']:24} {when} {what} next {row['next'] or 'never'}  {counts}".rstrip())
    return 0
