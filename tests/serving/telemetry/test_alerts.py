"""Alerts: sent once, by any free worker, never waited for, and never with the URL of the webhook."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from harness.service import ROOT
from harness.stub import Stub, reply, serving
from serving.shared.rate_table import Rate
from serving.storage.http import Outbound
from serving.telemetry.alerts import ALERTED, Alerts, Form, body, form_of
from tests.serving.conftest import until

pytestmark = pytest.mark.anyio

OFTEN = Rate(1000, 1.0, 1000)


@asynccontextmanager
async def telling(stub: Stub, form: Form = "slack") -> AsyncIterator[Alerts]:
    alerts = Alerts(Outbound(first_wait=0.001, timeout=1.0), stub.url, form, name="box")
    yield alerts
    await alerts.stop()
    await alerts.outbound.close()
    alerts.close()


def alert_in_a_child(alerts: Alerts) -> None:
    pid = os.fork()
    if pid == 0:
        alerts.alert("memory", "a worker has grown")
        os._exit(0)
    os.waitpid(pid, 0)


def said(stub: Stub) -> list[Any]:
    return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in stub.requests]


async def heard(stub: Stub, count: int) -> list[Any]:
    async def enough() -> bool:
        return len(stub.requests) >= count

    await until(enough)
    return said(stub)


async def test_an_alert_of_any_process_is_sent_once() -> None:
    async with serving(lambda *_: reply(204)) as stub, telling(stub) as alerts:
        alert_in_a_child(alerts)
        alerts.alert("memory", "another has")
        alerts.start()
        assert await heard(stub, 1) == [{"text": "box: a worker has grown"}]
        alerts.alert("other", "<!channel> & co")
        assert (await heard(stub, 2))[1] == {"text": "box: &lt;!channel&gt; &amp; co"}
        assert b"content-type: application/json" in stub.requests[0].lower()


async def test_a_line_of_the_log_is_an_alert() -> None:
    async with serving(lambda *_: reply(204)) as stub, telling(stub, "discord") as alerts:
        line = {"event": "Runner died", "pid": 7, "code": -9}
        assert alerts.watch(None, "warning", dict(line)) == line
        alerts.watch(None, "warning", {"event": "Runner started"})
        alerts.watch(None, "info", {"event": "Reload refused"})
        alerts.start()
        (message,) = await heard(stub, 1)
        assert message == {"content": "box: Runner died (code=-9)", "allowed_mentions": {"parse": []}}


async def test_a_flood_is_neither_waited_for_nor_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.telemetry.alerts.RATE_PER_KIND", OFTEN)
    with monkeypatch.context() as unlimited:
        unlimited.setattr("serving.telemetry.alerts.RATE_IN_ALL", OFTEN)
        async with serving(lambda *_: None) as stub, telling(stub) as alerts:
            for number in range(2000):  # far more than fits, and nobody reads
                alerts.alert("kind", f"message {number}" * 100)
    async with serving(lambda *_: reply(200)) as stub, telling(stub) as alerts:
        alerts.start()
        for number in range(100):
            alerts.alert(f"kind {number}", "x")
            await asyncio.sleep(0)
        assert len(await heard(stub, 5)) <= 10, "of all kinds together"


@pytest.mark.parametrize("answer", [None, reply(404), reply(500), reply(302, location="http://127.0.0.1:1/")])
async def test_a_webhook_that_fails_is_told_of_without_its_address(
    answer: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(lambda *_: answer) as stub, telling(stub) as alerts:
        alerts.start()
        alerts.alert("memory", "first")
        text = ""

        async def given_up() -> bool:
            nonlocal text
            text += capsys.readouterr().out
            return "Alert webhook is unavailable" in text or "Alert webhook returned an error" in text

        await until(given_up)
    assert "first" in text
    assert "secret-path" not in text
    assert stub.url.split("/")[2] not in text


async def test_without_a_webhook_there_is_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    alerts = Alerts(Outbound(), "", "slack", name="box")
    alerts.start()
    alerts.alert("memory", "a worker has grown")
    await alerts.stop()
    assert "a worker has grown" in capsys.readouterr().out
    assert alerts.descriptor is None


def test_the_form_goes_by_the_address_unless_it_is_said() -> None:
    assert form_of("https://discord.com/api/webhooks/1/x", "auto") == "discord"
    assert form_of("https://hooks.slack.com/services/x", "auto") == "slack"
    assert form_of("https://discord.com.evil.example/", "auto") == "slack"
    assert form_of("https://notdiscord.com/", "auto") == "slack"
    assert form_of("https://hooks.slack.com/services/x", "discord") == "discord"
    assert body("discord", "@everyone")["allowed_mentions"] == {"parse": []}


def test_every_line_that_is_an_alert_is_logged_somewhere() -> None:
    sources = [path.read_text() for name in ("cache", "registry", "serving") for path in (ROOT / name).rglob("*.py")]
    for event in ALERTED:
        assert sum(f'"{event}"' in source for source in sources) >= 2, event


def test_warnings_are_watched_for_alerts_whatever_the_log_shows() -> None:
    code = (
        "import structlog; from serving.telemetry import logs; seen = []\n"
        "logs.configure('error', watch=lambda _logger, level, event: seen.append(level) or event)\n"
        "log = structlog.get_logger(); log.info('a'); log.warning('b'); log.error('c'); print(seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    line, seen = done.stdout.splitlines()
    assert json.loads(line)["event"] == "c"
    assert seen == "['warning', 'error']"
