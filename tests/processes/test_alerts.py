"""Alerts of the real service: the master tells, a web worker sends, once for all of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from harness.jobs import forkserve_worker
from harness.processes import eventually, hammer
from harness.servers import http_server
from harness.service import Service
from serving.cli.client import post
from serving.process.kernel import MESSENGER, RUNNER, child_pids, name_of

SECRET = "/services/T000/B000/very-secret"


@contextmanager
def webhook(messages: list[str]) -> Iterator[str]:
    """The address of a server that takes messages in Slack's form."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            messages.append(json.loads(body)["text"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with http_server(Handler) as address:
        yield address + SECRET


def lose_a_runner(service: Service, number: int) -> None:
    """The first, or the next."""
    assert eventually(lambda: len(service.runners) == 1)
    os.kill(service.runners[0], signal.SIGKILL)
    assert eventually(lambda: len(service.events("Runner died")) == number)


def drift_away(service: Service) -> None:
    """Ask all workers about 900 wines that are all the same."""
    instance = service.get("/v1/models/wine")["example"]
    body = json.dumps({"instances": [instance] * 100}).encode()
    url = f"{service.address}/v1/models/wine:predict"
    assert asyncio.run(hammer(service.address, [post(url, body)], requests=9, connections=3)).failed == 0


def test_a_lost_runner_and_a_refused_reload_are_told_once(few_models: Path, tmp_path: Path) -> None:
    directory = tmp_path / "models"
    shutil.copytree(few_models, directory)
    messages: list[str] = []
    with webhook(messages) as url:
        environ = {"MODEL_DIR": str(directory), "WEB_CONCURRENCY": "3", "ALERT_WEBHOOK_URL": url, "MAX_REQUESTS": "0"}
        with Service(environ) as service:
            lose_a_runner(service, 1)
            lose_a_runner(service, 2)
            assert eventually(lambda: len(messages) == 1)
            broken = directory / "wine" / "2"
            shutil.copytree(directory / "wine" / "1", broken)
            (broken / "manifest.json").write_text("{")
            service.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: len(messages) == 2)
            drift_away(service)
            assert eventually(lambda: len(messages) == 3)
            drift_away(service)
        log = service.log()
    assert "Runner died (code=-9)" in messages[0]
    assert "Reload refused (reason=" in messages[1]
    assert "Drift of wine 1: " in messages[2]
    assert log.count('"event":"Runner died"') == 2, "the log has them all"
    assert log.count('"kind":"drift wine"') == 1
    assert SECRET not in log


def test_want_of_memory_is_told(few_models: Path) -> None:
    messages: list[str] = []
    with webhook(messages) as url:
        environ = {"MODEL_DIR": str(few_models), "WEB_CONCURRENCY": "1", "ALERT_WEBHOOK_URL": url, "ROLES": "web"}
        with Service(environ | {"MAX_MEMORY_MB": "20"}) as service:
            assert eventually(lambda: len(messages) == 2)
            assert {alert["kind"] for alert in service.events("Alert")} == {"memory-high", "memory-futile"}
    assert "Memory is high: " in messages[0]
    assert " of 20 MB are used" in messages[0]
    assert "Memory is short, and replacing processes would not help" in messages[1]


def test_forkserve_worker_watches_its_memory_and_sends_its_alerts_itself(sleeper: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    with webhook(messages) as url:
        environ = {"MODEL_DIR": str(sleeper), "DATA_DIR": str(tmp_path), "ALERT_WEBHOOK_URL": url}
        environ |= {"MAX_MEMORY_MB": "20", "LOG_LEVEL": "error"}
        with forkserve_worker(environ) as process:
            assert eventually(lambda: len(messages) == 2)
            names = {name_of(pid): pid for pid in child_pids(process.pid)}
            assert set(names) == {RUNNER, MESSENGER}
            os.kill(names[MESSENGER], signal.SIGKILL)
            os.kill(names[RUNNER], signal.SIGKILL)
            assert eventually(lambda: len(messages) == 3)
    assert "Memory is high: " in messages[0]
    assert "Runner died (code=-9)" in messages[2]
