"""Whoever should read the log does not, or has ended: the service goes on, and says later what is missing."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.processes import PATIENCE, eventually
from harness.service import ADMIN_TOKEN, FORKSERVE, ROOT
from serving.process.kernel import RUNNER, child_pids, name_of

READY = re.compile(rb"Listening at: (http://[0-9.:]+)")
PIPE_BYTES = 4096

WRITER = """
import os, sys, traceback
from serving.telemetry.output import dropped_lines, protect_output
protect_output()
protect_output()
for number in range(3000):
    print("{\\"line\\": %d}" % number)
if os.fork() == 0:
    print("x" * 100_000, file=sys.stderr)
    os._exit(dropped_lines() > 0)
assert os.wait()[1] == 0x100 * 1, "a forked process counts for itself"
os.write(3, b"%d\\n" % dropped_lines())
sys.stdin.readline()
print("again")
print("and again")
1 / 0
"""


def small_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return reading, writing


def drain(reading: int) -> bytes:
    content = b""
    while part := os.read(reading, 1 << 16):
        content += part
    return content


def test_prints_and_tracebacks_never_wait_and_what_is_missing_is_counted() -> None:
    reading, writing = small_pipe()
    told, telling = os.pipe()
    script = f"import os; os.dup2({telling}, 3)\n{WRITER}"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=writing,
        pass_fds=[telling],
    )
    os.close(telling)
    assert os.get_blocking(writing), "of its own, not that of whoever has started it"
    os.close(writing)
    dropped = int(os.read(told, 100))
    os.close(told)
    assert 0 < dropped < 3000
    before = os.read(reading, PIPE_BYTES).decode().splitlines()
    assert [json.loads(line) for line in before] == [{"line": number} for number in range(3000 - dropped)]
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    notice, again, and_again, *trace = drain(reading).decode().splitlines()
    os.close(reading)
    assert process.wait(PATIENCE) == 1
    assert json.loads(notice)["event"] == "Log lines dropped"
    assert json.loads(notice)["lines"] == dropped
    assert (again, and_again) == ("again", "and again")
    assert trace[-1] == "ZeroDivisionError: division by zero"


@pytest.fixture
def unread(few_models: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """A service whose log is a small pipe that nobody reads after the start, its end to read from, and its address."""
    reading, writing = small_pipe()
    environ = {"PORT": "0", "MODEL_DIR": str(few_models), "DATA_DIR": str(tmp_path), "ADMIN_TOKEN": ADMIN_TOKEN}
    process = subprocess.Popen(
        [str(FORKSERVE), "serve"],
        env=os.environ | environ,
        cwd=ROOT,
        stdout=writing,
        stderr=writing,
        start_new_session=True,
    )
    os.close(writing)
    log = b""
    while not (found := READY.search(log)) or log.count(b"Worker started") < 2 or b"Runner started" not in log:
        log += os.read(reading, PIPE_BYTES)
    yield process, reading, found[1].decode()
    process.terminate()
    process.wait(PATIENCE)


def ask(address: str, path: str) -> bytes:
    request = urllib.request.Request(address + path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        content: bytes = answer.read()
        return content


def dropped(address: str) -> float:
    (count,) = re.findall(rb"^forkserve_log_lines_dropped_total (.*)$", ask(address, "/metrics"), re.MULTILINE)
    return float(count)


def test_a_service_goes_on_while_nobody_reads_its_log_and_after_its_reader_has_ended(
    unread: tuple[subprocess.Popen[bytes], int, str],
) -> None:
    process, reading, address = unread
    for _ in range(200):
        ask(address, "/v1/models")
    assert eventually(lambda: dropped(address) > 0)
    (runner,) = [pid for pid in child_pids(process.pid) if name_of(pid) == RUNNER]
    os.kill(runner, 9)  # the master logs it, and another takes its place
    assert eventually(lambda: any(name_of(pid) == RUNNER and pid != runner for pid in child_pids(process.pid)))
    os.set_blocking(reading, False)
    seen = bytearray()

    def is_told() -> bool:
        ask(address, "/v1/models")
        with suppress(BlockingIOError):
            seen.extend(os.read(reading, PIPE_BYTES))
        return b"Log lines dropped" in seen

    assert eventually(is_told)
    os.close(reading)
    for _ in range(20):
        ask(address, "/v1/models")
    process.terminate()
    assert process.wait(PATIENCE) == 0
