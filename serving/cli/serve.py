"""Commands that run the service or a part of it, and show its schedules."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import socket
from typing import Any

from serving.cli.command import argument, command, fail, say
from serving.process.child import make_files_private
from serving.settings import Settings

COUNTED = ("fired", "missed", "coalesced", "overlaps_prevented", "failed", "overlap_incidents")


@command()
def serve(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run gunicorn, with an admin token that DATA_DIR keeps if none is set; without the role web, run a worker."""
    if "web" not in settings.roles:
        return _run_worker(settings)
    if is_taken(settings):
        return fail(f"port {settings.port} is in use: end what listens there, or set PORT={settings.port + 1}")
    os.environ["GREETING"] = "true"
    if not os.environ.get("ADMIN_TOKEN"):
        from serving.stores import kept_secret, kept_token

        if settings.redis_url and not settings.secret_key:  # what is in Redis does not depend on a token made here
            os.environ["SECRET_KEY"] = kept_secret(settings.data_dir)
        os.environ["ADMIN_TOKEN"] = kept_token(settings.data_dir)
        say("ADMIN_TOKEN is not set; `forkserve token` shows the one that DATA_DIR keeps")
    from serving.master.arbiter import ServiceApplication

    ServiceApplication(arguments.load).run()
    return 0


def is_taken(settings: Settings) -> bool:
    """Whether another program listens where this one would: gunicorn notices only when the models are loaded."""
    if "GUNICORN_CMD_ARGS" in os.environ:  # it may name another address
        return False
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


@command()
def token(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Show the admin token, to be typed where a page asks for a key: ADMIN_TOKEN, or the one that DATA_DIR keeps."""
    from serving.stores import kept_token

    say(settings.admin_token or kept_token(settings.data_dir))
    return 0


@command(argument("--once", action="store_true", help="run the jobs that are due, then end; for cron"))
def worker(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run jobs and schedules without serving, as ROLES says; with --once jobs until none is due, in this process."""
    return _run_once(settings) if arguments.once else _run_worker(settings)


def _run_once(settings: Settings) -> int:
    from serving.app import build, start_logging
    from serving.jobs.runner import immediately

    make_files_private()
    app = build(settings, start_logging(settings))
    _settle(settings)
    app.service.runner.run(until=immediately)
    return 0


def _run_worker(settings: Settings) -> int:
    from serving.app import start_logging
    from serving.master.children import RunnerMaster

    make_files_private()
    master = RunnerMaster(settings, start_logging(settings))
    if not master.kinds:
        return fail("ROLES includes only the scheduler, and SCHEDULES is empty")
    _settle(settings)
    master.run()
    return 0


def _settle(settings: Settings) -> None:
    """Prepare this process for forking. Raises CannotServe."""
    from serving.master import prefork

    prefork.import_modules(settings.preload_modules)
    prefork.settle()
    prefork.check_single_thread()


@command()
def schedules(_arguments: argparse.Namespace, settings: Settings) -> int:
    """List the schedules: when each fires, fired last and fires next, and how often it did."""
    from serving.app import build_alerts, build_scheduler, build_shared

    shared = build_shared(settings, build_alerts(settings))
    scheduler = build_scheduler(settings, shared)

    async def read() -> list[dict[str, Any]]:
        try:
            return await scheduler.timetable()
        finally:
            await shared.jobs.close()

    for row in asyncio.run(read()):
        counts = ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in COUNTED if row.get(name))
        when, what = f"{row['when']:40}", f"{row['action']:24}"
        say(f"{row['name']:24} {when} {what} next {row['next'] or 'never'}  {counts}".rstrip())
    return 0
