"""The check of locked requirements: it fails on what is known, and is loud where it could not ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from harness.servers import http_server
from harness.service import ROOT

LOCK = """
# via make
good==1.0 ; sys_platform == 'linux' \\
    --hash=sha256:aa
bad.one==2.0 \\
    --hash=sha256:bb
"""


def audit(lock: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci/audit.py"), str(lock)]
    return subprocess.run(
        command, env=os.environ | {"AUDIT_URL": url}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("known", "status", "said"),
    [
        ({"bad.one": "2.0"}, 1, "bad.one 2.0: X-1\n"),
        ({"bad.one": "1.0"}, 0, "2 locked packages: no known vulnerability\n"),
    ],
)
def test_what_is_known_about_a_locked_version_fails_the_check(
    tmp_path: Path, known: Mapping[str, str], status: int, said: str
) -> None:
    (tmp_path / "lock.txt").write_text(LOCK)

    class Database(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            results: list[Any] = [
                {"vulns": [{"id": "X-1"}]} if known.get(one["package"]["name"]) == one["version"] else {}
                for one in asked
            ]
            content = json.dumps({"results": results}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with http_server(Database) as address:
        done = audit(tmp_path / "lock.txt", address)
    assert (done.returncode, done.stdout, done.stderr) == (status, said, "")


def test_a_check_without_network_says_that_it_was_none(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(LOCK)
    done = audit(tmp_path / "lock.txt", "http://127.0.0.1:1/")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("!!! NOT AUDITED")
