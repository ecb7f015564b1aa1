"""Two services over one model directory: both take over what changes there, by themselves."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.admin import ask_admin
from harness.jobs import call, ended, forkserve_worker, send
from harness.processes import eventually, hammer_while
from harness.reloading import add_copy, live, settles_on
from harness.service import ADMIN_TOKEN, Service
from registry.store import aliases
from serving.process.kernel import child_pids

RELOADED, CHANGED = "Models reloaded", "Model directory changed"


@pytest.fixture
def shared_models(few_models: Path, tmp_path: Path) -> Path:
    """A model directory that both may read."""
    return Path(shutil.copytree(few_models, tmp_path / "models"))


def start(models: Path, **environ: str) -> Service:
    return Service(
        {"MODEL_DIR": str(models), "MAX_REQUESTS": "0", "ADMIN_TOKEN": ADMIN_TOKEN, "ROLES": "web", **environ}
    )


@pytest.fixture
def pair(shared_models: Path) -> Iterator[tuple[Service, Service]]:
    with start(shared_models) as one, start(shared_models) as two:
        yield one, two


def reloads(service: Service) -> int:
    return len(service.events(RELOADED))


def both_settle(pair: tuple[Service, Service], version: str) -> bool:
    return all(settles_on(service, "wine", version) for service in pair)


def test_new_promoted_and_rolled_back_versions_are_taken_over_once_by_both_and_no_request_is_lost(
    pair: tuple[Service, Service], shared_models: Path
) -> None:
    changes: tuple[tuple[str, Callable[[], object]], ...] = (
        ("2", partial(add_copy, shared_models, "wine", "2")),
        ("1", partial(aliases.promote, shared_models / "wine", "1")),
        ("2", partial(aliases.rollback, shared_models / "wine")),
    )

    def change() -> bool:
        for version, make in changes:
            make()
            if not both_settle(pair, version):
                return False
        return True

    tally, done = asyncio.run(hammer_while(pair[1], change))
    assert (tally.failed, done) == (0, True)
    for service in pair:
        assert (reloads(service), len(service.events(CHANGED))) == (3, 3)


def test_a_reload_that_one_is_asked_for_is_done_once_there_and_seen_by_the_other(
    pair: tuple[Service, Service], shared_models: Path
) -> None:
    one, two = pair
    add_copy(shared_models, "wine", "2")
    assert ask_admin(one, "models:reload")[0] == 200
    assert both_settle(pair, "2")
    assert ask_admin(two, "models/wine:rollback")[0] == 200
    assert both_settle(pair, "1")
    assert eventually(lambda: [reloads(service) for service in pair] == [2, 2])


def test_a_refused_version_is_not_tried_again_before_it_changes(
    pair: tuple[Service, Service], shared_models: Path
) -> None:
    artefact = add_copy(shared_models, "wine", "2") / "model.joblib"
    good = artefact.read_bytes()
    artefact.write_bytes(good[:-1])
    add_copy(shared_models, "diabetes", "2")  # comes after it, so both are seen
    assert all(settles_on(service, "diabetes", "2") for service in pair)
    add_copy(shared_models, "diabetes", "3")
    assert all(settles_on(service, "diabetes", "3") for service in pair)
    assert [live(service, "wine") for service in pair] == ["1", "1"]
    tried = [reloads(service) for service in pair]
    artefact.write_bytes(good)
    assert both_settle(pair, "2")
    assert [reloads(service) for service in pair] == [number + 1 for number in tried]


def test_watch_models_false_leaves_it_to_the_operator(shared_models: Path) -> None:
    with start(shared_models, WATCH_MODELS="false") as one, start(shared_models) as two:
        add_copy(shared_models, "wine", "2")
        assert settles_on(two, "wine", "2")
        assert (live(one, "wine"), reloads(one)) == ("1", 0)
        assert ask_admin(one, "models:reload")[0] == 200
        assert settles_on(one, "wine", "2")


def test_the_runners_of_forkserve_worker_take_over_a_new_version(shared_models: Path, tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(shared_models), "DATA_DIR": str(tmp_path / "data"), "ROLES": "worker"}
    with start(shared_models, DATA_DIR=environ["DATA_DIR"]) as web, forkserve_worker(environ) as worker:
        assert eventually(lambda: len(child_pids(worker.pid)) == 1)
        before = child_pids(worker.pid)
        add_copy(shared_models, "wine", "2")
        assert settles_on(web, "wine", "2")
        assert eventually(lambda: len(now := child_pids(worker.pid)) == 1 and now != before)
        row = web.get("/v1/models/wine")["example"]
        job = ended(web, send(web, "predict", "wine", [row]))
        assert (job["state"], job["version"]) == ("done", "2")
        body = json.dumps({"instances": [row]}).encode()
        direct = call(web, "POST", "/v1/models/wine:predict", body, Content_Type="application/json")
        assert call(web, "GET", job["result"]).json["predictions"] == direct.json["predictions"]
