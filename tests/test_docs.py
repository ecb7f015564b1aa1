"""The documents agree with the code: settings, commands, log events; and they contain no path of a machine."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import Field
from pathlib import Path
from typing import Any

import pytest

from harness.house import House
from harness.service import FORKSERVE, ROOT, Service
from serving.settings import Settings
from serving.telemetry.alerts import ALERTED

README = (ROOT / "README.md").read_text()
DEPLOYMENT = (ROOT / "DEPLOYMENT.md").read_text()
DEVELOPMENT = (ROOT / "DEVELOPMENT.md").read_text()
MAKE_RUN = ("make", "--no-print-directory", f"VENV={sys.prefix}", "run")


@pytest.mark.parametrize("setting", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_every_setting_is_in_deployment_md_with_its_default(setting: Field[Any]) -> None:
    row = next(line for line in DEPLOYMENT.splitlines() if line.startswith(f"| `{setting.name.upper()}` |"))
    default = setting.default
    shown = ",".join(default) if isinstance(default, tuple) else str(default)
    shown = shown.lower() if isinstance(default, bool) else shown
    expected = f"`{shown}`" if default not in ("", ()) else "empty"
    assert row == f"| `{setting.name.upper()}` | {expected} | {setting.metadata['meaning']} |"


def test_deployment_md_lists_no_setting_that_is_not_there() -> None:
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", DEPLOYMENT, re.MULTILINE))
    assert rows == {field.name.upper() for field in dataclasses.fields(Settings)}


FILLED_IN = r"\{\w+\}|X(?:\.XXX)?s|\b(?:N|HIT|MISS|Prediction|Explanation|done)\b"
"""The parts of documented events that the code fills in."""

PRODUCT = ("main.py", "forkserve", "registry", "cache", "serving")


def product_code() -> Iterator[tuple[str, str]]:
    """The name and the text of each module."""
    for path in tracked():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PRODUCT:
            yield path.name, path.read_text()


def logged() -> Iterator[tuple[str, str, str]]:
    """Each event in the code: its module, its level, and a pattern that it matches."""
    for name, text in product_code():
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=method), args=[event, *_]):
                    if pattern := _pattern(event):
                        yield name, "error" if method == "exception" else method, pattern
                case ast.keyword(arg="events", value=ast.Tuple([failed, back])):  # a guard's
                    yield name, "warning", _pattern(failed)
                    yield name, "info", _pattern(back)


def _pattern(event: ast.expr) -> str:
    """Matches the event; empty if it is computed elsewhere."""
    parts = event.values if isinstance(event, ast.JoinedStr) else [event]
    if not any(isinstance(part, ast.Constant) for part in parts):
        return ""
    return "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in parts)


def documented() -> list[tuple[str, str]]:
    """The events and their levels in the table of DEPLOYMENT.md."""
    table = re.split(r"^## ", DEPLOYMENT[DEPLOYMENT.index("\n## Log lines\n") + 4 :], flags=re.MULTILINE)[0]
    return re.findall(r"^\| `([^`]+)` \| (info|warning|error) \| .+ \|$", table, re.MULTILINE)


def test_every_log_event_is_in_deployment_md_with_its_level() -> None:
    events, rows = list(logged()), documented()
    assert len(events) > 60
    missing = [
        (name, level, pattern)
        for name, level, pattern in events
        if not any(level == row_level and re.fullmatch(pattern, event) for event, row_level in rows)
    ]
    assert missing == []


def test_deployment_md_lists_no_log_event_that_is_not_there() -> None:
    code = "\n".join(text for _, text in product_code())
    events = [event for event, _ in documented()]
    gone = [event for event in events if not all(part.strip() in code for part in re.split(FILLED_IN, event))]
    assert gone == ["stamina.retry_scheduled"], "that one is a library's"
    assert len(set(events)) == len(events)


def test_every_alert_is_in_deployment_md() -> None:
    _, alerts, *_ = re.split(r"^## (?:Alerts|Log lines)$", DEPLOYMENT, flags=re.MULTILINE)
    assert [event for event in ALERTED if f"`{event}`" not in alerts] == []
    assert set(ALERTED) - {event for event, _ in documented()} == set()


def test_links_between_the_documents_lead_somewhere() -> None:
    links = {link for path in ROOT.glob("*.md") for link in re.findall(r"\]\(([^):]+)\)", path.read_text())}
    assert {"GUIDE.md", "DEPLOYMENT.md"} <= links
    lost = []
    for link in links:
        name, _, anchor = link.partition("#")
        text = (ROOT / name).read_text() if name.endswith(".md") and (ROOT / name).is_file() else None
        titles = re.findall(r"^#+ (.+)$", text or "", flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        if not (ROOT / name).exists() or (anchor and anchor not in anchors):
            lost.append(link)
    assert lost == []


def test_development_md_shows_the_house_as_it_is() -> None:
    shown = [line[4:] for line in DEVELOPMENT.splitlines() if line.startswith("    ")]
    tree = list(House(ROOT).tree())
    start = shown.index(tree[0])
    assert shown[start : start + len(tree)] == tree


def test_the_files_that_the_documents_name_are_there() -> None:
    text = "\n".join(path.read_text() for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md")
    named = set(re.findall(r"(?<![\w/])(?:bench|cache|examples|harness|registry|serving|tests)/[\w/.-]*\.\w+", text))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_two_commands_of_the_readme_are_make_run_and_make_test() -> None:
    assert re.findall(r"^    (make \w+) ", README, re.MULTILINE) == ["make run", "make test"]


def test_the_curl_lines_of_the_readme_work(service: Service) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) >= 5
    for command in commands:
        here = command.replace("http://127.0.0.1:8000", service.address)
        done = subprocess.run([*shlex.split(here), "--fail"], capture_output=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        json.loads(done.stdout)


def test_the_forkserve_commands_of_the_readme_are_there() -> None:
    named = set(re.findall(r"^    forkserve ([\w-]+)", README, re.MULTILINE))
    help_text = subprocess.run([FORKSERVE, "--help"], capture_output=True, text=True, check=True)
    assert {"models", "check", "serve", "add", "verify", "load-test"} <= named
    commands = set(re.findall(r"^    ([\w-]+)(?: +\w|$)", help_text.stdout, re.MULTILINE))
    assert named - commands == set()


def test_make_run_trains_serves_and_prints_a_line_that_works(tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(tmp_path / "models"), "ADMIN_TOKEN": "", "HOST": "127.0.0.1"}
    environ["DATA_DIR"] = str(tmp_path / "data")
    with Service(environ, MAKE_RUN) as service:
        log = service.log()
        assert "ADMIN_TOKEN is not set; `forkserve token` shows the one that DATA_DIR keeps" in log
        assert "Open it in a browser" in log
        curl = next(line.strip() for line in log.splitlines() if line.strip().startswith("curl "))
        done = subprocess.run(curl, shell=True, capture_output=True, check=True)
        assert json.loads(done.stdout)["predictions"]
        shown = [str(FORKSERVE), "token"]
        token = subprocess.run(shown, capture_output=True, text=True, check=True, env=os.environ | environ).stdout
        header = f"Authorization: Bearer {token.strip()}"
        kept = tmp_path / "data" / "admin-token"
        assert token.strip() == kept.read_text()
        assert kept.stat().st_mode & 0o777 == 0o600
        command = ["curl", "-s", "--fail", "-H", header, f"{service.address}/api/admin/metrics"]
        assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["workers"]


def test_the_requirements_are_locked_with_hashes_and_name_no_index() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = (ROOT / name).read_text().splitlines()
        pinned = [line for line in lines if re.match(r"[a-z]", line)]
        assert pinned
        assert all("==" in line and line.endswith("\\") for line in pinned)
        assert not any("index" in line or "://" in line for line in lines)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).suffix not in (".json", ".png")]


def test_no_file_holds_a_path_of_a_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/")
    here = Path(__file__)
    assert [path.name for path in tracked() if path != here and pattern.search(path.read_text())] == []


def test_make_run_ends_with_the_service(tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(tmp_path / "models")}
    with Service(environ, MAKE_RUN) as service:
        pids = service.workers
        service.stop(signal.SIGTERM)
    assert pids
    assert [pid for pid in (*pids, service.master) if Path(f"/proc/{pid}").exists()] == []
