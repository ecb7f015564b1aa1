"""Commands that run the service, or a part of it."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import NoReturn

from commands.terminal import say
from serving.settings import Settings

ROOT = Path(__file__).parent.parent


def serve(_arguments: argparse.Namespace, settings: Settings) -> NoReturn:
    """Become gunicorn, with an admin token made for this run if there is none; or a worker without web."""
    if "web" not in settings.roles:
        os.execv(sys.executable, [sys.executable, str(ROOT / "main.py"), "worker"])  # noqa: S606 - no shell is wanted
    os.environ["GREETING"] = "true"
    if not os.environ.get("ADMIN_TOKEN"):
        os.environ["ADMIN_TOKEN"] = token = secrets.token_urlsafe(24)
        say(f"ADMIN_TOKEN is not set; for this run it is {token}")
    configuration = ROOT / "serving" / "gunicorn_conf.py"
    command = [sys.executable, "-m", "gunicorn", "--config", str(configuration), "main:app"]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


def worker(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run jobs and schedules without serving, as ROLES says; with --once jobs until none is due, in this process."""
    from assembly.schedules import schedules_of
    from assembly.web import build, build_alerts
    from serving import logs, prefork
    from serving.errors import CannotServe
    from serving.jobs.runner import at_once
    from serving.metrics.book import Book
    from serving.processes import SCHEDULER
    from serving.reloads import Reloads
    from serving.runners import Runners, supervise

    alerts = build_alerts(settings)
    logs.configure(settings.log_level, watch=alerts.watch)
    kinds = []
    try:
        if "scheduler" in settings.roles and settings.schedules and not arguments.once:
            scheduler = schedules_of(settings, Reloads(), alerts.outbound).scheduler
            kinds.append(Runners(scheduler.run, 1, Book(2), name=SCHEDULER))
        if arguments.once or "worker" in settings.roles or "scheduler" not in settings.roles:
            app = build(settings, alerts)
            kinds.append(Runners(app.runner.run, settings.job_runners, app.lasting.book))
        prefork.import_modules(settings.preload_modules)
        prefork.settle()
        prefork.check_single_thread()
    except CannotServe as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    if not kinds:
        say("forkserve: ROLES names the scheduler alone, and SCHEDULES is empty", file=sys.stderr)
        return 1
    if arguments.once:
        app.runner.run(until=at_once)
    else:
        supervise(kinds)
    return 0
