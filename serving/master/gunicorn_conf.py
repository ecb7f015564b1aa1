"""Gunicorn's configuration: the settings in gunicorn's words, and hooks for what happens around the fork."""

from __future__ import annotations

import json
import os
import resource
import shlex
import sys
from typing import Any

from registry.imports import hide_arrow
from serving.process.child import be_early_out_of_memory, limit_numeric_threads

limit_numeric_threads(os.environ)  # first of all: the next imports import numpy
hide_arrow()

from gunicorn.workers import base

from registry.registry import Registry
from serving.errors import CannotServe, InvalidSetting
from serving.master import prefork
from serving.master import reload as reloading  # `reload` alone would be a setting of gunicorn's
from serving.master.arbiter import EarlyReplacingArbiter
from serving.master.children import Runners
from serving.master.memory import MemoryWatch
from serving.master.worker import DrainingWorker, Heartbeat
from serving.process.kernel import RECORDER, SCHEDULER, WEB, rename
from serving.settings import Settings, in_url, is_loopback
from serving.shared.book import Book
from serving.telemetry.logs import GunicornLogger

try:
    _settings = Settings.from_env(os.environ)
except InvalidSetting as error:
    sys.exit(f"forkserve: {error}")

if "web" not in _settings.roles:
    sys.exit("forkserve: ROLES does not include web; run `forkserve worker` instead of gunicorn")

bind = f"{in_url(_settings.host)}:{_settings.port}"
workers = _settings.web_concurrency
worker_class = "serving.master.worker.DrainingWorker"
preload_app = _settings.preload
timeout = int(_settings.timeout_seconds)
graceful_timeout = int(_settings.graceful_timeout_seconds)
keepalive = int(_settings.keepalive_seconds)
max_requests = _settings.max_requests
max_requests_jitter = _settings.max_requests_jitter
proc_name = "forkserve"
loglevel = _settings.log_level
logger_class = GunicornLogger
GunicornLogger.form = _settings.log_format
# It runs a thread in the master, and a master with two threads must not fork
control_socket_disable = True

# before the models are loaded: later changes are noticed
_watch = reloading.ModelWatch(_settings.model_dir) if _settings.watch_models and _settings.preload else None


def on_starting(server: Any) -> None:
    """In the master, before anything is bound."""
    # gunicorn has no setting for these
    server.__class__ = EarlyReplacingArbiter
    base.WorkerTmp = Heartbeat
    DrainingWorker.turn = os.memfd_create("turn")
    # a slow client costs a descriptor; the soft limit is often 1,024
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def when_ready(server: Any) -> None:
    """In the master, models loaded, before the first fork."""
    _warn_if_exposed(server)
    if not _settings.preload:  # then every process loads its own models, and the master none
        _add_runners(server, Book(2 * (_settings.job_runners + 1)), None)
        return
    app = server.app.wsgi()
    shared = app.service.shared
    try:
        prefork.import_modules(_settings.preload_modules)
        prefork.warm(app)
        shared.reloads.open()
        prefork.settle()
        prefork.check_single_thread()
    except CannotServe as error:
        sys.exit(f"forkserve: {error}")
    _add_runners(server, shared.book, shared.alerts.descriptor)
    if (recorder := shared.recorder) is not None:
        server.runners += (Runners(recorder.run, 1, shared.book, name=RECORDER, keep=shared.alerts.descriptor),)
    server.watch = _watch
    processes = _settings.web_concurrency + ("worker" in _settings.roles) * _settings.job_runners
    server.memory = MemoryWatch(_settings, shared, processes=processes, replace=server.replace)
    if _settings.greeting:
        host, port = server.LISTENERS[0].getsockname()[:2]
        print(_greeting(f"http://{in_url(host)}:{port}", app.service.registry), flush=True)  # noqa: T201


def _warn_if_exposed(server: Any) -> None:
    """Look at the sockets, because options of gunicorn's may override HOST."""
    names = [listener.getsockname() for listener in server.LISTENERS]
    if not _settings.has_keys and not all(isinstance(name, str) or is_loopback(name[0]) for name in names):
        server.log.warning("Open to everybody: no key is needed; set API_KEY, API_KEYS or API_KEYS_FILE")


def _greeting(address: str, registry: Registry) -> str:
    """The address, and a curl line to paste, for the model with the fewest features."""
    if not registry:
        return f"\nforkserve serves no model yet; open {address} in a browser: it says how to add one\n"
    model = min(registry.live(), key=lambda model: len(model.manifest.features))
    body = shlex.quote(json.dumps({"instances": [model.example]}))
    url = f"{address}/v1/models/{model.name}:predict"
    key = "-H 'X-API-Key: KEY' " if _settings.has_keys else ""
    left_out = "".join(f"Left out: {refusal.reason}\n" for refusal in registry.refusals)
    return (
        f"\nforkserve serves {len(registry)} models at {address}\n{left_out}"
        f"{'Open it in a browser, or try' if _settings.pages else 'Try'}:\n\n"
        f"  curl -s {url} {key}-H 'Content-Type: application/json' -d {body}\n"
    )


def _add_runners(server: Any, book: Book, keep: int | None) -> None:
    """Add the runners that ROLES asks for; of the master's descriptors they `keep` one.

    They run the app that the master holds when it forks them.
    """

    def run_jobs() -> None:
        server.app.wsgi().service.runner.run()

    def fire_schedules() -> None:
        server.app.wsgi().service.scheduler.run()

    if "worker" in _settings.roles:
        server.runners += (Runners(run_jobs, _settings.job_runners, book, keep=keep),)
    if "scheduler" in _settings.roles and _settings.schedules:
        server.runners += (Runners(fire_schedules, 1, book, name=SCHEDULER, keep=keep),)


def on_reload(server: Any) -> None:
    """In the master at HUP, before the new workers are forked; an exception here would end the service."""
    if _settings.preload:
        if server.watch is not None:
            server.watch.note()
        server.app.callable = reloading.reload(server.app.wsgi(), server.tend)
        prefork.settle()  # now that nobody holds the old app any more
        server.memory.measure_master()
    for runners in server.runners:
        runners.replace()


def pre_fork(server: Any, worker: Any) -> None:
    """In the master, before every fork."""
    if not _settings.preload:
        return
    worker.slot = server.app.wsgi().service.shared.book.assign()
    try:
        prefork.check_single_thread()
    except CannotServe as error:
        # At the start this is refused; later a worker that may hang is better than a master that ends
        server.log.error(str(error))


def child_exit(server: Any, worker: Any) -> None:
    """In the master, when a worker has ended."""
    if _settings.preload:
        server.app.wsgi().service.shared.book.release(worker.slot, WEB)


def post_fork(server: Any, worker: Any) -> None:
    """In the new worker."""
    rename(WEB)
    if _settings.preload:
        server.app.wsgi().service.shared.book.enter(worker.slot)
    else:
        prefork.import_modules(_settings.preload_modules)
    # The kernel's first victim is the largest process; let it be a worker, which comes back, not the master
    be_early_out_of_memory(500)


def post_worker_init(worker: Any) -> None:
    """In the new worker, app at hand, before its event loop and its threads."""
    worker.wsgi.service.executor.start()


def on_exit(_server: Any) -> None:
    """In the master, last of all."""
    if _settings.greeting:
        print("forkserve stopped", flush=True)  # noqa: T201
