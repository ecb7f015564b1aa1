"""Names of models and versions that are meant as something else: paths, control characters, fragments."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.apps import client_of
from harness.service import Service
from harness.wire import ask, check_refusal, request
from serving.app import build, build_alerts
from serving.settings import Settings
from tests.attacks.payloads import body
from tests.cases import cases

NAMES = [
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "..",
    "../../../../etc/passwd",
    "..%5c..%5cmodels",
    "..\\..\\models",
    "C:/",
    "%2fetc%2fpasswd",
    "#",
    "?",
    "%00",
    "wine%00",
    "wine%00.joblib",
    "a%0d%0ab",
    "a%0aX-Injected:%201",
    "%E2%80%AE",
    "wine%E2%80%AE",
    "%ff%fe",
    "%",
    "%zz",
    "x" * 10_000,
    "",
    "WINE",
    "wine%20",
    "wine;v=1",
    "${jndi:ldap://127.0.0.1/a}",
    "%3Cimg%20src=x%20onerror=alert(1)%3E",
    "__class__",
    "model.joblib",
]
FORMS = ["/v1/models/{}:predict", "/v1/models/wine/versions/{}:predict", "/v1/models/{}/versions/1:predict"]


@pytest.mark.parametrize("form", FORMS)
def test_strange_name_is_not_found_for_predictions(target: Service, form: str) -> None:
    with cases() as case:
        for name in NAMES:
            # what stands behind "#" or "?" is no part of the path: what is left is another route, for another method
            statuses = (404, 405) if name in ("#", "?") else (404,)
            with case(name):
                check_refusal(ask(target, request(form.format(name), body())), *statuses)


@pytest.mark.parametrize("form", ["/v1/models/{}", "/v1/models/wine/versions/{}"])
def test_strange_name_is_not_found_in_the_list(target: Service, form: str) -> None:
    with cases() as case:
        for name in NAMES:
            with case(name):
                check_refusal(ask(target, request(form.format(name), method="GET")), 404)


def test_raw_control_and_foreign_bytes_in_a_path_are_refused(target: Service) -> None:
    with cases() as case:
        for raw in (b"\xe2\x80\xae", b"\xff", b"\x00", b"\x01", b"\x1b[2J", b"\x7f", b" ", b"\t", b"a\rb"):
            with case(raw):
                check_refusal(ask(target, request(b"/v1/models/" + raw + b":predict", body())), 400, 404)


def test_refused_name_is_not_echoed(target: Service) -> None:
    answer = ask(target, request("/v1/models/zq7marker:predict", body()))
    check_refusal(answer, 404)
    assert b"zq7marker" not in answer.body
    assert "zq7marker" not in str(answer.headers)


def test_trailing_slash_is_not_found_rather_than_redirected(target: Service) -> None:
    answer = ask(target, request("/v1/models/", method="GET", host="evil.example"))
    check_refusal(answer, 404)
    assert "location" not in answer.headers


def test_no_file_is_opened_for_a_name(models: Path) -> None:
    settings = Settings(model_dir=models)
    app = build(settings, build_alerts(settings))
    opened: list[str] = []
    listening: list[bool] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event in ("open", "os.listdir", "os.scandir"):
            opened.append(str(arguments[0]))

    async def ask_for_all() -> None:
        async with client_of(app) as client:
            await client.get("/v1/models/none")  # what is imported late is imported now
            listening.append(True)
            for name in NAMES:
                for form in FORMS:
                    await client.post(form.format(name), json={"instances": []})
                    await client.get(form.format(name).removesuffix(":predict"))
            os.scandir(models).close()
            listening.clear()  # an audit hook is for ever

    sys.addaudithook(note)
    asyncio.run(ask_for_all())
    assert opened == [str(models)], "only what the test itself opened to show that it is seen"
