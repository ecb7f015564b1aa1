"""The OpenAPI document and the metrics of a real service, judged by other people's programs.

schemathesis asks for what the document promises; two generators make clients of it, in Python and in TypeScript, which
have to compile and to work; promtool reads the metrics.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import npm
from harness.entities import import_market, sqlite_source
from harness.judges import JUDGES, programs, promtool
from harness.service import ADMIN_TOKEN, ROOT, Service

API_KEY = "a-key-only-for-tests"
MODELS = ("market-return", "mortgage")
"""Numbers, whole numbers, booleans, categories, and what is bound to entities."""

SCHEMATHESIS = """
# all checks are on; what is not taken for a fault has its reason
hooks = "hooks"
seed = 1
max-time = 30
continue-on-failure = true
warnings = false

[generation]
database = "none"

# a client may set a deadline that no answer keeps, and more streams and jobs than there is room for
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503, 504]

# no schema says which rows fit a model that the path names, which CSV is one, which records an entity has, or which
# parameters go together
[[operations]]
include-path-regex = '^/v1/(jobs|models/.*|entities/\\{entity\\}/(records|predictions))$|^/v2/|invocations$'
checks.positive_data_acceptance.enabled = false

# it does not end to think of bodies of seven forms, each in half of the forms of tables; `/invocations` takes the same
[[operations]]
include-path-regex = '^/(invocations|score)$'
enabled = false

# its body, which clients of Triton send, can only ask for less than all, and is not read
[[operations]]
include-path = "/v2/repository/index"
checks.negative_data_rejection.enabled = false
"""

HOOKS = """
import schemathesis

@schemathesis.hook
def filter_case(_context, case):
    # a header that nobody knows is no violation: RFC 9110 says that it is ignored
    return "x-schemathesis-unknown-property" not in (case.headers or {})
"""

MYPY = """
[mypy]
# the same text in every client that this generator makes
[mypy-generated.client]
ignore_errors = True
"""

PYTHON = """
import sys
from generated import AuthenticatedClient
from generated.api.jobs import show_job, submit_job
from generated.api.models import list_models
from generated.api.predict import predict_market_return
from generated.models import PredictMarketReturnBody, SubmitJobJsonBody

client = AuthenticatedClient(sys.argv[1], token=sys.argv[2], raise_on_unexpected_status=True)
names = [model.name for model in list_models.sync(client=client).models]
row = {feature: 0.01 for feature in sys.argv[3].split(",")}
body = PredictMarketReturnBody.from_dict({"instances": [row]})
answer = predict_market_return.sync(client=client, body=body)
job = submit_job.sync(
    client=client,
    body=SubmitJobJsonBody.from_dict({"operation": "predict", "model": "market-return", "instances": [row]}),
)
again = show_job.sync(job.id, client=client)
refused = predict_market_return.sync(client=client, body=PredictMarketReturnBody.from_dict({"instances": []}))
print(names, answer.model, answer.predictions, job.id == again.id, refused.status, refused.detail)
"""

TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.ts";

declare const process: { argv: string[] };
const [, , baseUrl, key, features] = process.argv as [string, string, string, string, string];
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });

const models = await client.GET("/v1/models");
const names: string[] = (models.data?.models ?? []).map((model) => model.name);
const row = Object.fromEntries(features.split(",").map((name) => [name, 0.01]));
type Body = paths["/v1/models/market-return:predict"]["post"]["requestBody"]["content"]["application/json"];
const answer = await client.POST("/v1/models/market-return:predict", { body: { instances: [row] } as Body });
// a string would be a stream of events
if (!answer.data || typeof answer.data === "string") throw new Error(JSON.stringify(answer.error));
const predictions: number[] = answer.data.predictions;
// @ts-expect-error a prediction of this model is a number
const label: { label: string } = answer.data.predictions[0];
const refused = await client.POST("/v1/models/{model}:predict", {
  params: { path: { model: "none" } },
  body: { instances: [row] },
});
const problem: components["schemas"]["Problem"] | undefined = refused.error;
console.log(JSON.stringify({ names, predictions, label, status: problem?.status }));
"""


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker that wants a key."""
    directory, data = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("data")
    for name in MODELS:
        shutil.copytree(models / name, directory / name)
    import_market(sqlite_source(data))
    environ = {
        "MODEL_DIR": str(directory),
        "DATA_DIR": str(data),
        "WEB_CONCURRENCY": "1",
        "MAX_REQUESTS": "0",
        "JOB_MAX_QUEUED": "1000",
        "API_KEY": API_KEY,
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
    with Service(environ) as running:
        yield running


def read(service: Service, path: str) -> bytes:
    """What a client with a key gets."""
    request = urllib.request.Request(service.address + path, headers={"Authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def document(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("openapi") / "openapi.json"
    file.write_bytes(read(service, "/openapi.json"))
    return file


@pytest.fixture(scope="module")
def features(service: Service) -> str:
    return ",".join(json.loads(read(service, "/v1/models/market-return"))["features"])


def run(*command: str | Path, directory: Path, **environ: str) -> str:
    """The output of a program that has to succeed."""
    done = subprocess.run(
        command, cwd=directory, env=os.environ | environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_schemathesis_finds_no_difference_between_document_and_service(service: Service, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    (tmp_path / "hooks.py").write_text(HOOKS)
    output = run(
        programs("openapi") / "schemathesis",
        "run",
        f"{service.address}/openapi.json",
        "--no-color",
        f"--header=Authorization: Bearer {ADMIN_TOKEN}",
        # streams that do not end, and what changes the service under its own test
        "--exclude-path-regex=events$|^/api/admin/models",
        directory=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    assert "No issues found" in output


def test_generated_python_client_compiles_and_works(
    service: Service, document: Path, features: str, tmp_path: Path
) -> None:
    generator = programs("openapi") / "openapi-python-client"
    run(generator, "generate", "--path", document, "--output-path", "generated", "--meta", "none", directory=tmp_path)
    (tmp_path / "mypy.ini").write_text(MYPY)
    run(sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", "generated", directory=tmp_path)
    (tmp_path / "use.py").write_text(PYTHON)
    python = programs("openapi") / "python"
    output = run(python, "use.py", service.address, API_KEY, features, directory=tmp_path)
    assert output.startswith(f"{list(MODELS)} market-return [0.0")
    assert " True 422 " in output


def test_generated_typescript_client_compiles_and_works(
    service: Service, document: Path, features: str, tmp_path: Path
) -> None:
    packages = npm.installed(ROOT / "harness" / "openapi_typescript", JUDGES / "openapi_typescript") / "node_modules"
    (tmp_path / "node_modules").symlink_to(packages)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "use.ts").write_text(TYPESCRIPT)
    node = npm.node_program()
    run(node, packages / "openapi-typescript" / "bin" / "cli.js", document, "-o", "schema.ts", directory=tmp_path)
    options = "--strict --noEmit --module nodenext --target es2022 --lib es2022,dom --allowImportingTsExtensions"
    run(node, packages / "typescript" / "bin" / "tsc", *options.split(), "use.ts", directory=tmp_path)
    found = json.loads(run(node, "use.ts", service.address, API_KEY, features, directory=tmp_path))
    assert found["names"] == list(MODELS)
    assert found["predictions"] == [found["label"]]
    assert found["status"] == 404


def test_promtool_has_nothing_to_say_about_the_metrics(service: Service, tmp_path: Path) -> None:
    program = promtool()
    if program is None:
        pytest.skip("promtool is neither on PATH nor in a package of this system")
    request = urllib.request.Request(f"{service.address}/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        metrics = answer.read()
    assert metrics.count(b"# TYPE") > 20
    done = subprocess.run([program, "check", "metrics"], input=metrics, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
