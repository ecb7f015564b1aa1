"""Commands that run the service, or a part of it."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from serving.cli.terminal import say
from serving.settings import Settings, warn_of_misspelt

if TYPE_CHECKING:
    from serving.master.children import Runners
    from serving.master.memory import MemoryWatch
    from serving.telemetry.alerts import Alerts

ROOT = Path(__file__).parents[2]
MB = 1024 * 1024


def serve(_arguments: argparse.Namespace, settings: Settings) -> NoReturn:
    """Become gunicorn, with an admin token made for this run if there is none; or a worker without web."""
    if "web" not in settings.roles:
        os.execv(sys.executable, [sys.executable, str(ROOT / "main.py"), "worker"])  # noqa: S606 - no shell is wanted
    os.environ["GREETING"] = "true"
    if not os.environ.get("ADMIN_TOKEN"):
        os.environ["ADMIN_TOKEN"] = token = secrets.token_urlsafe(24)
        say(f"ADMIN_TOKEN is not set; for this run it is {token}")
    configuration = ROOT / "serving" / "master" / "gunicorn_conf.py"
    command = [sys.executable, "-m", "gunicorn", "--config", str(configuration), "main:app"]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


def worker(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run jobs and schedules without serving, as ROLES says; with --once jobs until none is due, in this process."""
    from serving.app import build, build_alerts
    from serving.errors import CannotServe
    from serving.jobs.runner import immediately
    from serving.master import prefork
    from serving.master.children import supervise
    from serving.telemetry import logs

    alerts = build_alerts(settings)
    logs.configure(settings.log_level, watch=alerts.watch)
    warn_of_misspelt(os.environ)
    try:
        if arguments.once:
            app = build(settings, alerts)
        else:
            kinds = _processes(settings, alerts)
        prefork.import_modules(settings.preload_modules)
        prefork.settle()
        prefork.check_single_thread()
    except CannotServe as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    if arguments.once:
        app.service.runner.run(until=immediately)
    elif not kinds:
        say("forkserve: ROLES names the scheduler alone, and SCHEDULES is empty", file=sys.stderr)
        return 1
    else:
        supervise(kinds, _watch_memory(settings, alerts, kinds))
    return 0


def _processes(settings: Settings, alerts: Alerts) -> list[Runners]:
    """What is to be forked here; with a webhook also who sends alerts, as web workers do elsewhere."""
    from serving.app import build, build_scheduler, build_shared
    from serving.master.children import Runners
    from serving.process.kernel import MESSENGER, SCHEDULER
    from serving.shared.book import Book

    kinds = []
    if "worker" in settings.roles or "scheduler" not in settings.roles:
        service = build(settings, alerts).service
        shared, scheduler = service.shared, service.scheduler
        kinds.append(Runners(service.runner.run, settings.job_runners, shared.book, keep=alerts.descriptor))
    else:
        shared = build_shared(settings, alerts)
        scheduler = build_scheduler(settings, shared)
    if "scheduler" in settings.roles and settings.schedules:
        kinds.append(Runners(scheduler.run, 1, Book(2), name=SCHEDULER, keep=alerts.descriptor))
    if kinds and alerts.outlet is not None:
        kinds.append(Runners(alerts.run, 1, Book(2), name=MESSENGER, keep=alerts.outlet))
    return kinds


def _watch_memory(settings: Settings, alerts: Alerts, kinds: Sequence[Runners]) -> MemoryWatch:
    from serving.master.memory import MemoryWatch
    from serving.shared.pressure import Pressure

    def replace(pid: int) -> None:
        for runners in kinds:
            runners.replace_one(pid)

    return MemoryWatch(
        Pressure(),
        limit=settings.max_memory_mb * MB,
        share=settings.max_worker_memory_mb * MB,
        processes=settings.job_runners,
        replace=replace,
        alert=alerts.alert,
    )
