"""Runs wrk, the load generator: the cheapest there is, so that what is measured is the server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from serving.cli.client import post

DONE = """
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %.1f %.1f %.1f\\n", summary.requests, summary.duration,
    summary.errors.status, summary.errors.connect + summary.errors.read + summary.errors.write
    + summary.errors.timeout, latency:percentile(50), latency:percentile(99), latency.max))
end
"""

SCRIPT = """
local n = 0
local ready = {{}}
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
init = function()
  for i = 1, {total} do
    local body = ({body}):gsub("@@", string.format("%.9f", {low} + (i + {seed}) * {step}))
    ready[i] = wrk.format(nil, "{path}", nil, body)
  end
end
request = function()
  n = n % {total} + 1
  return ready[n]
end
"""


MESSAGES = """
local ready = {{}}
local n = 0
init = function()
  local file = io.open("{file}", "rb")
  local all = file:read("*a")
  file:close()
  local place = 1
  for size in ("{sizes}"):gmatch("%d+") do
    ready[#ready + 1] = all:sub(place, place + size - 1)
    place = place + size
  end
  math.randomseed(os.time())
  n = math.random(#ready)
end
request = function()
  n = n % #ready + 1
  return ready[n]
end
"""
"""Whole requests from a file, one after the other."""


@dataclass(frozen=True)
class Load:
    """The results of wrk: requests a second, seconds of latency, answers other than 2xx, and lost connections."""

    rate: float
    p50: float
    p99: float
    refused: int
    lost: int


@dataclass(frozen=True)
class Shot:
    """A POST whose body has `@@` where a number between `low` and `high` goes; `unique` numbers before they repeat.

    The requests are made before the first is sent: to make them meanwhile would take as long as to answer them. More
    of them than a cache holds, one after the other, are never found in it.
    """

    path: str
    body: str
    low: float
    high: float
    unique: int = 50_000

    def messages(self, address: str, start: int = 0) -> Iterator[bytes]:
        """An endless sequence of requests as bytes, for a client other than wrk."""
        for index in count(start + 1):
            value = self.low + (self.high - self.low) * index * 1e-7
            yield post(address + self.path, self.body.replace("@@", repr(value)).encode())


def run_messages(
    address: str, path: str, messages: Sequence[tuple[bytes, Mapping[str, str]]], *, connections: int, seconds: float
) -> Load:
    """Fire these bodies, each with its headers, for so many seconds over so many keep-alive connections."""
    host = address.removeprefix("http://")
    whole = []
    for body, headers in messages:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        whole.append(head.encode() + body)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(whole))
        file.flush()
        script = MESSAGES.format(file=file.name, sizes=" ".join(str(len(one)) for one in whole))
        return _run_script(address, script, connections=connections, seconds=seconds)


def run(address: str, shot: Shot, *, connections: int, seconds: float, seed: int = 0) -> Load:
    """Fire for so many seconds over so many keep-alive connections."""
    script = SCRIPT.format(
        seed=seed,
        total=shot.unique,
        low=repr(shot.low),
        step=repr((shot.high - shot.low) / 1e7),
        body="[==[" + shot.body + "]==]",
        path=shot.path,
    )
    return _run_script(address, script, connections=connections, seconds=seconds)


def _run_script(address: str, script: str, *, connections: int, seconds: float) -> Load:
    wrk = shutil.which("wrk")
    if wrk is None:
        sys.exit("this benchmark needs wrk on PATH")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "shot.lua"
        file.write_text(script + DONE)
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", "-s", str(file), address]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    requests, microseconds, refused, lost = map(int, found.groups()[:4])
    return Load(requests / microseconds * 1e6, float(found[5]) / 1e6, float(found[6]) / 1e6, refused, lost)
