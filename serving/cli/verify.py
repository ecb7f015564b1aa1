"""`forkserve verify`: checks a deployed service by asking it once for everything it offers, as a client would.

It leaves behind one finished job, and two requests per model in the metrics.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from serving.cli.client import RemoteFault, RemoteService, json_of
from serving.cli.command import argument, command, fail, say
from serving.settings import Settings

if TYPE_CHECKING:
    import httpx

POLL_SECONDS = 0.5
JOB_SECONDS = 60.0
TOLERANCE = 1e-6
"""Largest relative difference between an output and the sum of its contributions; XGBoost computes in float32."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `fault` is empty if there is none."""

    subject: str
    fault: str = ""
    note: str = ""


@command(
    argument("url", nargs="?", help="https://... of the service; default: this machine, port PORT"),
    argument("--wait", type=float, default=0.0, metavar="SECONDS", help="how long it may take to become ready"),
    argument("--max-memory-mb", type=float, default=math.inf, help="MB that all of its processes together may use"),
)
def verify(arguments: argparse.Namespace, settings: Settings) -> int:
    """Check a running service after a deploy by asking it for everything it offers; prints a line per finding."""
    faults = 0
    with RemoteService.of(arguments.url, settings) as service:
        for finding in findings(service, wait_seconds=arguments.wait, max_memory_mb=arguments.max_memory_mb):
            verdict, text = ("FAULT", finding.fault) if finding.fault else ("ok", finding.note)
            say(f"{verdict:5}  {finding.subject:32} {text}".rstrip())
            faults += bool(finding.fault)
    if faults:
        return fail(f"{faults} faults")
    say("all is well")
    return 0


def findings(
    service: RemoteService, *, wait_seconds: float = 0.0, max_memory_mb: float = math.inf
) -> Iterator[Finding]:
    """Check one thing after the other. A service that is starting is given `wait_seconds` to become ready."""
    ready = _finding("readiness", partial(_await_ready, service, wait_seconds))
    yield ready
    if ready.fault:
        return
    yield _finding("health", partial(_health, service))
    try:
        models = service.models()
    except RemoteFault as error:
        yield Finding("models", str(error))
        return
    yield Finding("models", "" if models else "the service has none", str(len(models)))
    for model in models:
        yield _finding(f"predict {model['name']}", partial(_predict, service, model))
        if model["explainer"] is not None and not model["explainer"]["jobs_only"]:
            yield _finding(f"explain {model['name']}", partial(_explain, service, model))
    if models:
        yield _finding("cache", partial(_cache, service, models[0]))
        yield _finding("stream", partial(_stream, service, models[0]))
        yield _finding("job", partial(_job, service, models[0]))
    yield _finding("refusals", partial(_refusals, service))
    yield _finding("admin is closed", partial(_closed, service))
    yield _finding("memory", partial(_memory, service, max_memory_mb))


def _finding(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, note=look())
    except RemoteFault as error:
        return Finding(subject, str(error))
    except (KeyError, IndexError, TypeError) as error:
        return Finding(subject, f"unexpected form of the answer: {type(error).__name__} {error}")


def _await_ready(service: RemoteService, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            service.expect(200, "GET", "/health/ready")
        except RemoteFault:
            if time.monotonic() >= deadline:
                raise
        else:
            return ""
        time.sleep(POLL_SECONDS)


def _health(service: RemoteService) -> str:
    health = service.get("/health")
    if health["status"] != "ok":
        raise RemoteFault(f"the service reports {health['status']}: {health}")
    return "ok"


def _infer(service: RemoteService, model: dict[str, Any], verb: str) -> httpx.Response:
    path = f"/v1/models/{model['name']}:{verb}"
    answer = service.expect(200, "POST", path, json={"instances": [model["example"]]})
    if answer.headers.get("X-Model-Fallback") == "true":
        raise RemoteFault(f"a fallback model answers {path}")
    return answer


def _predict(service: RemoteService, model: dict[str, Any]) -> str:
    (prediction,) = json_of(_infer(service, model, "predict"))["predictions"]
    if isinstance(prediction, dict):
        if prediction.get("probabilities") and not math.isclose(
            sum(prediction["probabilities"].values()), 1.0, abs_tol=TOLERANCE
        ):
            raise RemoteFault(f"the probabilities do not add up to 1: {prediction}")
        return str(prediction.get("label", prediction))
    if not math.isfinite(prediction):
        raise RemoteFault(f"the prediction is {prediction}")
    return f"{prediction:.6g}"


def _explain(service: RemoteService, model: dict[str, Any]) -> str:
    (explanation,) = json_of(_infer(service, model, "explain"))["explanations"]
    total = explanation["base_value"] + math.fsum(explanation["values"].values())
    if not math.isclose(total, explanation["output"], rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise RemoteFault(f"base value and contributions add up to {total}, the output is {explanation['output']}")
    return str(explanation["method"])


def _cache(service: RemoteService, model: dict[str, Any]) -> str:
    """The example was predicted before; ask twice more, because a worker may be replaced at any time."""
    for _ in range(2):
        source = _infer(service, model, "predict").headers.get("X-Cache")
        if source is None:
            return "hidden"  # SHOW_TIMING=false
        if source.startswith("hit"):
            return str(source)
    raise RemoteFault(f"X-Cache is {source} when the same request is sent for the third time")


def _stream(service: RemoteService, model: dict[str, Any]) -> str:
    answer = service.ask(
        "POST",
        f"/v1/models/{model['name']}:predict",
        json={"instances": [model["example"]] * 2},
        headers={"Accept": "text/event-stream"},
    )
    events = [line.partition(":")[2].strip() for line in answer.text.splitlines() if line.startswith("event:")]
    if events != ["prediction", "prediction", "done"]:
        raise RemoteFault(f"expected two predictions and `done`, got {events} with status {answer.status_code}")
    return ""


def _job(service: RemoteService, model: dict[str, Any]) -> str:
    """Submit a job, wait for a runner, and compare the result with that of `:predict`."""
    request = {"operation": "predict", "model": model["name"], "instances": [model["example"]]}
    place = service.expect(202, "POST", "/v1/jobs", json=request).headers["Location"]
    deadline = time.monotonic() + JOB_SECONDS
    while (job := service.get(place))["state"] in ("queued", "running"):
        if time.monotonic() >= deadline:
            raise RemoteFault(f"the job is {job['state']} after {JOB_SECONDS:g} s; is a runner running?")
        time.sleep(POLL_SECONDS)
    if job["state"] != "done":
        raise RemoteFault(f"the job is {job['state']}: {job.get('error')}")
    direct = json_of(_infer(service, model, "predict"))["predictions"]
    if service.get(f"{place}/result")["predictions"] != direct:
        raise RemoteFault("the job and a direct request have different results")
    return ""


def _refusals(service: RemoteService) -> str:
    answer = service.expect(404, "POST", "/v1/models/no-such-model:predict", json={"instances": [{}]})
    if answer.headers.get("Content-Type") != "application/problem+json":
        raise RemoteFault(f"the Content-Type of an unknown model is {answer.headers.get('Content-Type')}")
    return ""


def _closed(service: RemoteService) -> str:
    for path in ("/api/admin/metrics", "/metrics"):
        status = service.ask("GET", path, headers={"Authorization": ""}).status_code
        if status not in (401, 404):
            raise RemoteFault(f"{path} without a token answers {status}")
    return ""


def _memory(service: RemoteService, max_memory_mb: float) -> str:
    used = service.memory()
    if used is None:
        if max_memory_mb < math.inf:
            raise RemoteFault("--max-memory-mb needs ADMIN_TOKEN")
        return "unknown without ADMIN_TOKEN"
    if used > max_memory_mb * 2**20:
        raise RemoteFault(f"all processes use {used / 2**20:.0f} MB, more than {max_memory_mb:g}")
    return f"{used / 2**20:.0f} MB"
