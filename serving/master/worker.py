"""A uvicorn worker for gunicorn that ends without losing a request.

When it ends (after its last request, at SIGTERM, or because the master is gone), it stops accepting: the master holds
the listening socket, so new connections go to the other workers. It notifies the master, which forks a replacement at
once. It finishes the requests in flight and sends `Connection: close` with every answer from then on. Event streams
would not end by themselves: they are ended, and their clients resume at another worker. A client between two requests
gets a last chance to send one; only then are idle connections closed. A client that sends at that very moment may still
lose its request: HTTP/1.1 cannot tell an idle client that the server is leaving.

Of the workers that have served their requests one drains at a time: it holds a lock, which its end releases, however it
ends. The others serve on meanwhile.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import mmap
import os
import signal
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import structlog
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from serving.http.protocol import LimitedProtocol, is_scarce
from serving.master.arbiter import EarlyReplacingArbiter

log = structlog.get_logger(__name__)

TICKS_A_SWEEP = 10
"""uvicorn ticks every 0.1 s."""


class Heartbeat:
    """The time at which a worker was alive, kept as gunicorn's WorkerTmp does, but in memory.

    It needs no writable directory, and no slow disk makes a worker look dead.
    """

    def __init__(self, cfg: Any) -> None:
        self._descriptor = os.memfd_create("heartbeat")
        if (cfg.uid, cfg.gid) != (os.geteuid(), os.getegid()):
            os.fchown(self._descriptor, cfg.uid, cfg.gid)

    def notify(self) -> None:
        now = time.monotonic()
        os.utime(self._descriptor, (now, now))

    def last_update(self) -> float:
        return os.fstat(self._descriptor).st_mtime

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


class DrainingServer(Server):
    """Uvicorn's server, which drains between serving and shutdown."""

    def __init__(self, config: Config, *, worker: DrainingWorker) -> None:
        super().__init__(config)
        self._worker = worker
        self._started = time.monotonic()
        self._draining_since: float | None = None
        self._quiet_ticks = 0
        self._is_full = False
        self._told_to_end = False
        self._hurried = False
        self._interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is uvicorn's
        """SIGTERM drains; SIGINT and SIGQUIT only finish requests in flight; a second SIGINT drops those as well.

        A single Ctrl-C reaches a worker twice: as SIGINT from the terminal, and as SIGQUIT from its master.
        """
        if sig in (signal.SIGINT, signal.SIGQUIT):
            # the SIGQUIT of the first Ctrl-C may arrive after the second
            self.force_exit = self.force_exit or (sig == signal.SIGINT and self._interrupted)
            self._interrupted = self._interrupted or sig == signal.SIGINT
            self._hurried = True
        # not `should_exit`: it would end a worker that is still starting without a drain
        self._told_to_end = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("Worker started", pid=os.getpid())

    async def on_tick(self, counter: int) -> bool:
        """True when it is time to shut down."""
        leaving = await super().on_tick(counter)
        now = asyncio.get_running_loop().time()
        if counter % TICKS_A_SWEEP == 0:
            read_timeout = self._worker.wsgi.settings.read_timeout_seconds
            for connection in list(self.server_state.connections):
                connection.sweep(now, read_timeout)  # type: ignore[union-attr]
            self._worker.wsgi.tick()
            self._watch_descriptors()
        if self._draining_since is None:
            reason = self._reason_to_leave(leaving)
            if reason is None:
                return False
            self._begin_drain(reason)
            self._draining_since = now
            await self._worker.wsgi.end_streams()
        # Twice, because a connection may be accepted but not yet counted
        self._quiet_ticks = 0 if self.server_state.connections or self.server_state.tasks else self._quiet_ticks + 1
        return self._hurried or self._quiet_ticks >= 2 or now - self._draining_since > self._worker.drain_seconds

    def _watch_descriptors(self) -> None:
        """Log once that new connections are refused, until they no longer are."""
        with socket.socket() as probe:
            was_full, self._is_full = self._is_full, is_scarce(probe.fileno())
        if self._is_full and not was_full:
            log.warning("Connections refused: file descriptors run out", connections=len(self.server_state.connections))

    def _reason_to_leave(self, leaving: bool) -> str | None:  # noqa: FBT001
        if self._told_to_end:
            return "told to end"
        if leaving and self._may_be_replaced():
            return "it has served its requests"
        if os.getppid() != self._worker.ppid:
            return "the master is gone"
        reason_to_replace: str | None = self._worker.wsgi.reason_to_replace()
        return reason_to_replace

    def _may_be_replaced(self) -> bool:
        """True for one worker at a time, once it is old enough."""
        if time.monotonic() - self._started < self._worker.wsgi.settings.min_worker_seconds:
            return False
        try:
            fcntl.lockf(self._worker.turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _begin_drain(self, reason: str) -> None:
        log.info("Worker draining", pid=os.getpid(), reason=reason, connections=len(self.server_state.connections))
        self.limit_max_requests = None  # uvicorn would log it again and again
        for server in self.servers:
            server.close()
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False
        self._worker.announce_end()


class DrainingWorker(UvicornWorker):  # type: ignore[misc]
    """The gunicorn worker class."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - uvicorn-worker declares it so
        "loop": "uvloop",
        "http": LimitedProtocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        # X-Forwarded-For is evaluated by `clients`, which counts the proxies
        "proxy_headers": False,
    }

    turn: int
    """The descriptor of a file in memory; who has it locked is being replaced."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # at info it repeats what gunicorn and the drain log
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self.drain_seconds = min(self.cfg.keepalive + 0.5, self.cfg.graceful_timeout / 2)
        self.config.timeout_graceful_shutdown = max(1, int(self.cfg.graceful_timeout - self.drain_seconds - 1))
        # one byte that master and worker share
        self._retiring = mmap.mmap(-1, 1)

    def init_signals(self) -> None:
        """Unblock the signals that end a worker, which the master has blocked; for now they end it at once."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    @property
    def retiring(self) -> bool:
        """True if the worker has begun to end, in the worker and in the master."""
        return self._retiring[0] != 0

    @retiring.setter
    def retiring(self, value: bool) -> None:
        self._retiring[0] = value

    def announce_end(self) -> None:
        """Notify the master and wake it: at SIGCHLD it looks after its workers."""
        self.retiring = True
        if os.getppid() == self.ppid:
            os.kill(self.ppid, signal.SIGCHLD)

    def run(self) -> None:
        """Serve, then exit."""
        super().run()
        self._exit()

    def _exit(self) -> NoReturn:
        """Exit without the interpreter's own end.

        That would take every object apart and so copy every page that is still shared: workers that end together would
        need as much memory as if they shared nothing. It would also wait for threads that are stuck.
        """
        log.info("Worker stopped", pid=self.pid)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        self.config.http = partial(LimitedProtocol, count=self.wsgi.count_refusal, unsent=self.wsgi.unsent)
        server = DrainingServer(self.config, worker=self)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, server.handle_exit, signal.SIGQUIT, None)
        # the plain sockets: gunicorn's wrapper logs an error when uvloop has closed them first
        await server.serve(sockets=[listener.sock for listener in self.sockets])
        if not server.started:
            sys.exit(EarlyReplacingArbiter.WORKER_BOOT_ERROR)
        if server.force_exit:
            self._exit()  # a lifespan that was not shut down would be cancelled, and log a traceback
