"""Files of a model that were exchanged, damaged or never belonged to it; and the fallback that may stand in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest

from harness.service import COMMAND, ROOT, Service
from harness.wire import ask, request
from registry.errors import VersionRefused
from registry.store.loader import load_version
from serving.http.schemas import TABLES
from tests.attacks.payloads import GOOD
from tests.conftest import Run

Spoil = Callable[[Path], None]


class Trojan:
    """Makes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sentinel),)


@pytest.fixture
def wine(models: Path, tmp_path: Path) -> Path:
    """A copy of one version, in a model directory of its own."""
    return Path(shutil.copytree(models / "wine" / "1", tmp_path / "models" / "wine" / "1"))


def sentinel(wine: Path) -> Path:
    return wine.parents[2] / "executed"


def rehash(wine: Path) -> None:
    """Make the manifest vouch for the artefact that is there."""
    change_manifest(sha256=hashlib.sha256((wine / "model.joblib").read_bytes()).hexdigest())(wine)


def change_manifest(**changes: Any) -> Spoil:
    def change(wine: Path) -> None:
        path = wine / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def swap_for_trojan(wine: Path) -> None:
    joblib.dump(Trojan(sentinel(wine)), wine / "model.joblib")


def swap_for_plain_pickle(wine: Path) -> None:
    (wine / "model.joblib").write_bytes(pickle.dumps(Trojan(sentinel(wine))))


def link_outside(wine: Path) -> None:
    outside = wine.parents[2] / "outside.joblib"
    (wine / "model.joblib").rename(outside)
    (wine / "model.joblib").symlink_to(outside)


def link_directory_outside(wine: Path) -> None:
    outside = wine.parents[2] / "outside"
    wine.rename(outside)
    wine.symlink_to(outside)


def link_to_itself(wine: Path) -> None:
    (wine / "model.joblib").unlink()
    (wine / "model.joblib").symlink_to("model.joblib")


def pipe_instead(wine: Path) -> None:
    (wine / "model.joblib").unlink()
    os.mkfifo(wine / "model.joblib")


def directory_instead(wine: Path) -> None:
    (wine / "model.joblib").unlink()
    (wine / "model.joblib").mkdir()


def truncate(wine: Path) -> None:
    content = (wine / "model.joblib").read_bytes()
    (wine / "model.joblib").write_bytes(content[: len(content) // 2])


def truncate_and_rehash(wine: Path) -> None:
    truncate(wine)
    rehash(wine)


def empty_and_rehash(wine: Path) -> None:
    (wine / "model.joblib").write_bytes(b"")
    rehash(wine)


def need_missing_library(wine: Path) -> None:
    # protocol 0: GLOBAL "module name", STOP
    (wine / "model.joblib").write_bytes(b"cno_such_library.models\nModel\n.")
    rehash(wine)


def hold_no_estimator(wine: Path) -> None:
    joblib.dump({"no": "estimator"}, wine / "model.joblib")
    rehash(wine)


def remove(wine: Path) -> None:
    (wine / "model.joblib").unlink()


def text_for_manifest(wine: Path) -> None:
    (wine / "manifest.json").write_text("this is\nnot JSON")


def bytes_for_manifest(wine: Path) -> None:
    (wine / "manifest.json").write_bytes(b'{"name": "\xff"}')


def deep_manifest(wine: Path) -> None:
    (wine / "manifest.json").write_text('{"example":' + "[" * 100_000)


def remove_manifest(wine: Path) -> None:
    (wine / "manifest.json").unlink()


ARTEFACTS: list[tuple[Spoil, str]] = [
    (swap_for_trojan, "sha256"),
    (swap_for_plain_pickle, "sha256"),
    (link_outside, "is a link that leaves"),
    (link_directory_outside, "is a link that leaves"),
    (link_to_itself, "leads nowhere|symbolic links"),
    (pipe_instead, "is not a file"),
    (directory_instead, "is not a file"),
    (truncate, "sha256"),
    (truncate_and_rehash, "does not load"),
    (empty_and_rehash, "does not load"),
    (need_missing_library, "needs a library that is not installed: No module named 'no_such_library'"),
    (hold_no_estimator, "holds a dict"),
    (remove, "No such file"),
    (change_manifest(sha256="0" * 64), "sha256"),
    (change_manifest(sha256=""), "sha256"),
    (change_manifest(expected=[[0.0, 0.0, 0.0, 0.0]]), "does not answer as it did"),
    (change_manifest(classes=["one", "two"]), "classes"),
    (change_manifest(task="regression"), "its manifest says regression"),
]
MANIFESTS: list[tuple[Spoil, str]] = [
    (text_for_manifest, "is not a manifest"),
    (bytes_for_manifest, "is not a manifest"),
    (deep_manifest, "is not a manifest"),
    (remove_manifest, "No such file"),
    (change_manifest(name="other"), "is the manifest of other/1"),
    (change_manifest(version="2"), "is the manifest of wine/2"),
    (change_manifest(artefact="../../../outside.joblib"), "is not a plain file name"),
    (change_manifest(artefact="/etc/passwd"), "is not a plain file name"),
    (change_manifest(format=2), "is not a manifest"),
    (change_manifest(unknown=1), "is not a manifest"),
    (change_manifest(features=[]), "lists no features"),
]


@pytest.mark.parametrize(("spoil", "reason"), ARTEFACTS + MANIFESTS)
def test_spoilt_version_is_refused_in_one_line_that_names_the_file(wine: Path, spoil: Spoil, reason: str) -> None:
    spoil(wine)
    with pytest.raises(VersionRefused, match=reason) as refusal:
        load_version(wine.parents[1], wine)
    assert str(wine) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert not sentinel(wine).exists()


@pytest.mark.parametrize("spoil", [spoil for spoil, _ in ARTEFACTS])
def test_fallback_stands_in_for_an_artefact_that_is_spoilt(wine: Path, spoil: Spoil) -> None:
    spoil(wine)
    model = load_version(wine.parents[1], wine, fallback=True)
    assert model.fallback
    assert len(model.predict(model.schema.rows([model.manifest.example] * 3))) == 3
    assert not sentinel(wine).exists()


def test_trojan_is_one(tmp_path: Path) -> None:
    content = io.BytesIO()
    joblib.dump(Trojan(tmp_path / "executed"), content)
    joblib.load(content)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("spoil", "file"),
    [(swap_for_trojan, "model.joblib"), (need_missing_library, "model.joblib"), (text_for_manifest, "manifest.json")],
)
def test_service_does_not_start_over_a_spoilt_version(wine: Path, spoil: Spoil, file: str) -> None:
    spoil(wine)
    environ = os.environ | {"MODEL_DIR": str(wine.parents[1]), "PORT": "0"}
    ended = subprocess.run(COMMAND, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    said = ended.stdout + ended.stderr
    assert ended.returncode not in (0, None)
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("forkserve: ")]
    assert str(wine / file) in line
    assert not sentinel(wine).exists()


def test_service_says_everywhere_that_a_fallback_answers(wine: Path) -> None:
    swap_for_trojan(wine)
    environ = {"MODEL_DIR": str(wine.parents[1]), "MODEL_FALLBACK": "true", "WEB_CONCURRENCY": "1"}
    with Service(environ) as service:
        answer = ask(service, GOOD)
        health = service.get("/health")
        assert service.get("/health/ready") == {"status": "ok"}
        assert service.get("/v1/models")["models"][0]["fallback"] is True
        assert service.events("Fallback model in use")[0]["model"] == "wine"
    assert answer.status == 200
    assert answer.headers["x-model-fallback"] == "true"
    assert answer.json()["fallback"] is True
    assert sum(answer.json()["predictions"][0]["probabilities"].values()) == pytest.approx(1)
    assert (health["status"], health["fallbacks"]) == ("degraded", ["wine/1"])
    assert not sentinel(wine).exists()


class Harmful:
    """Runs a statement when it is unpickled."""

    def __init__(self, statement: str) -> None:
        self.statement = statement

    def __reduce__(self) -> Any:
        return exec, (self.statement,)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("import os; os._exit(3)", "exited with status 3"),
        ("import ctypes; ctypes.string_at(0)", "Segmentation fault"),
        ("print('x' * 100_000_000, flush=True); raise ValueError('enough')", "ValueError: enough"),
        ("while True: pass", "takes longer than"),
        ("bytearray(1 << 40)", "needs more memory than there is"),
        ("import os, time\nif os.fork() == 0: time.sleep(1000)", "a NoneType is no estimator"),
    ],
)
def test_inspect_survives_code_that_does_harm(run: Run, tmp_path: Path, statement: str, reason: str) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Harmful(statement)))
    inspected = run("inspect", "model.pkl", RELOAD_TIMEOUT_SECONDS="1")
    assert inspected.returncode == 1
    assert reason in inspected.stderr
    assert len(inspected.stderr.splitlines()) == 1
    assert "may call      builtins.exec" in inspected.stdout
    assert len(inspected.stdout) < 1000


def test_service_says_everywhere_that_another_release_has_fitted_a_model(wine: Path) -> None:
    said = "fitted with scikit-learn 1.3.2, this is 1.9.1"
    change_manifest(fitted_with={"scikit-learn": "1.3.2"}, forced=said)(wine)
    environ = {"MODEL_DIR": str(wine.parents[1]), "WEB_CONCURRENCY": "1", "DATA_DIR": str(wine.parents[2])}
    with Service(environ) as service:
        answer = ask(service, GOOD)
        assert (answer.json()["forced"], answer.headers["x-model-forced"]) == (said, "true")
        assert service.get("/v1/models/wine")["forced"] == said
        health = service.get("/health")
        assert (health["status"], health["forced"]) == ("degraded", {"wine/1": said})
        order = {"operation": "predict", "model": "wine", "instances": [answer_example(service)]}
        job = ask(service, request("/v1/jobs", json.dumps(order).encode())).json()
        assert finished(service, job["id"])["forced"] == said


def answer_example(service: Service) -> Any:
    return service.get("/v1/models/wine")["example"]


def finished(service: Service, job: str) -> Any:
    """The result of a job, once its stream of events has ended."""
    with urllib.request.urlopen(f"{service.address}/v1/jobs/{job}/events", timeout=60) as stream:
        stream.read()
    return service.get(f"/v1/jobs/{job}/result")


def named(schema: Any) -> set[str]:
    """The names of all properties, however deep."""
    if isinstance(schema, list):
        return set().union(*map(named, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", ())).union(*map(named, schema.values()))


def test_no_route_takes_a_path_an_address_or_a_file(service: Service) -> None:
    for path, operations in service.get("/openapi.json")["paths"].items():
        for operation in operations.values():
            names = [parameter["name"].lower() for parameter in operation.get("parameters", [])]
            assert not {"path", "url", "uri", "file", "source"} & set(names)
            content = operation.get("requestBody", {}).get("content", {})
            assert set(content) <= {"application/json", "application/octet-stream", "text/csv", *TABLES}
            for media in content.values():
                assert named(media["schema"]) & {"path", "url", "uri", "file", "source"} == set(), path
