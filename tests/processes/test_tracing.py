"""Spans that real workers send to a collector, and collectors that are not there."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from harness.processes import eventually
from harness.servers import http_server
from harness.service import ROOT, Service
from harness.wire import ask, request
from serving.app import build_tracing
from serving.errors import InvalidSetting
from serving.settings import Settings

KEY = "a-key-of-enough-characters"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WINE = [13.2, 1.78, 2.14, 11.2, 100, 2.65, 2.76, 0.26, 1.28, 4.38, 1.05, 3.4, 1050]
JOB = json.dumps({"operation": "predict", "model": "wine", "instances": [WINE]}).encode()
BODY = json.dumps({"instances": [WINE, WINE]}).encode()


@dataclass
class Collector:
    """What was sent to it."""

    address: str
    spans: list[Any]

    def find(self, name: str) -> Any:
        return next((span for span in self.spans if span.name == name), None)


@pytest.fixture
def collector() -> Iterator[Collector]:
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    with http_server(Handler) as address:
        yield Collector(address, spans)


def attributes(span: Any) -> dict[str, Any]:
    return {
        item.key: item.value.string_value if item.value.HasField("string_value") else item.value.int_value
        for item in span.attributes
    }


def test_spans_of_requests_reach_the_collector_when_the_worker_ends_at_the_latest(
    few_models: Path, collector: Collector
) -> None:
    environ = {
        "MODEL_DIR": str(few_models),
        "WEB_CONCURRENCY": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address,
        "OTEL_BSP_SCHEDULE_DELAY": "600000",  # nothing is sent before the end
        "API_KEY": KEY,
    }
    with Service(environ) as service:
        parent = f"00-{TRACE}-{PARENT}-01"
        assert ask(service, request("/v1/models/wine:predict", BODY, traceparent=parent, x_api_key=KEY)).status == 200
        assert ask(service, request("/v1/models/nothing-of-ours:predict", BODY, x_api_key=KEY)).status == 404
        assert ask(service, request("/v1/models/wine", method="GET", x_api_key=KEY)).status == 200
        job = json.loads(ask(service, request("/v1/jobs", JOB, x_api_key=KEY)).body)
        path = f"/v1/jobs/{job['id']}"
        assert eventually(
            lambda: json.loads(ask(service, request(path, method="GET", x_api_key=KEY)).body)["state"] == "done"
        )
        assert eventually(lambda: bool(service.events("Job done")))
        (completed,) = [line for line in service.events("Request completed") if line.get("trace_id") == TRACE]
        (done,) = service.events("Job done")
        assert collector.spans == []
    work = collector.find("job predict")
    assert attributes(work)["forkserve.job"] == job["id"]
    assert attributes(collector.find("POST /v1/jobs"))["forkserve.job"] == job["id"]
    assert done["trace_id"] == work.trace_id.hex()
    assert completed["request_id"]
    span = collector.find("POST /v1/models/{model}:predict")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    noted = attributes(span)
    assert (noted["http.response.status_code"], noted["http.route"]) == (200, "/v1/models/{model}:predict")
    assert (noted["forkserve.model"], noted["forkserve.instances"]) == ("wine", 2)
    assert noted["forkserve.cache"] in ("miss", "mixed")
    assert noted["forkserve.request_id"]
    assert noted["forkserve.key"] == "default"
    assert not any(KEY in str(attributes(span)) for span in collector.spans)
    assert attributes(collector.find("GET /v1/models/{model}"))["http.response.status_code"] == 200
    assert not any("nothing-of-ours" in str(attributes(span)) + span.name for span in collector.spans)


def test_a_collector_that_hangs_slows_neither_requests_nor_the_end(few_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ = {
            "MODEL_DIR": str(few_models),
            "WEB_CONCURRENCY": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "10",
        }
        with Service(environ) as service:
            for _ in range(20):
                assert ask(service, request("/v1/models/wine:predict", BODY)).status == 200
            silent.settimeout(30)
            connection, _ = silent.accept()
            assert ask(service, request("/v1/models/wine:predict", BODY)).status == 200
            started = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - started < 20, "its own patience is 10 s for each attempt"
            connection.close()


def test_without_the_extra_an_endpoint_refuses_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    monkeypatch.delitem(sys.modules, "serving.telemetry.tracing", raising=False)
    with pytest.raises(InvalidSetting, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT needs"):
        build_tracing(Settings(otel_exporter_otlp_endpoint="http://127.0.0.1:4318"))


def test_no_exporter_is_imported_without_an_endpoint(few_models: Path) -> None:
    code = "import sys, main; main.web(); print('opentelemetry.exporter' in sys.modules)"
    environ = os.environ | {"MODEL_DIR": str(few_models), "LOG_LEVEL": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
