"""Two services over one Redis: what one reloads, the other does, too."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.admin import ask_admin
from harness.processes import eventually, hammer_while
from harness.reloading import add_copy, live, settles_on
from harness.servers import RedisServer
from harness.service import ADMIN_TOKEN, Service
from serving.events.redis import RedisEventLog
from serving.master.announcements import announce

RELOADED, TOLD, TELLS = "Models reloaded", "Told to reload", "Other instances are told to reload"


@pytest.fixture
def shared_models(models: Path, tmp_path: Path) -> Path:
    """A model directory that both may read."""
    return Path(shutil.copytree(models, tmp_path / "models"))


@pytest.fixture
def pair(shared_models: Path, own_server: RedisServer) -> Iterator[tuple[Service, Service]]:
    environ = {
        "MODEL_DIR": str(shared_models),
        "REDIS_URL": own_server.url,
        "MAX_REQUESTS": "0",
        "ADMIN_TOKEN": ADMIN_TOKEN,
        "ROLES": "web",
    }
    with Service(environ) as one, Service(environ) as two:
        yield one, two


def _serves_again(service: Service) -> bool:
    return len(service.events("Worker serves")) == 4


def _was_told(service: Service) -> bool:
    return count(service) == (1, 1, 0)


def count(service: Service) -> tuple[int, int, int]:
    """How often it has reloaded, was told to, and has told the others."""
    return len(service.events(RELOADED)), len(service.events(TOLD)), len(service.events(TELLS))


def test_a_reload_of_one_reaches_the_other_once_and_loses_no_request(
    pair: tuple[Service, Service], shared_models: Path
) -> None:
    one, two = pair
    add_copy(shared_models, "wine", "2")

    def reload() -> bool:
        return ask_admin(one, "models:reload")[0] == 200 and settles_on(two, "wine", "2")

    tally, done = asyncio.run(hammer_while(two, reload))
    assert (tally.failed, done) == (0, True)
    assert settles_on(one, "wine", "2")
    assert eventually(lambda: count(one) == (1, 0, 1))
    assert eventually(lambda: count(two) == (1, 1, 0))
    # whatever comes back comes before the answer to what is sent afterwards
    assert ask_admin(two, "models/wine:rollback")[0] == 200
    assert settles_on(one, "wine", "1")
    assert eventually(lambda: count(one) == (2, 1, 1))
    assert eventually(lambda: count(two) == (2, 1, 1))


def test_hup_by_hand_is_told_also_when_the_worker_that_listens_is_killed(
    pair: tuple[Service, Service], shared_models: Path
) -> None:
    one, two = pair
    for service in pair:
        for worker in service.workers:
            os.kill(worker, signal.SIGKILL)
        assert eventually(partial(_serves_again, service))
    add_copy(shared_models, "wine", "2")
    os.kill(one.master, signal.SIGHUP)
    assert settles_on(one, "wine", "2")
    assert settles_on(two, "wine", "2")
    assert eventually(lambda: count(two) == (1, 1, 0))


def test_what_promotes_a_version_elsewhere_can_tell_all_instances(
    pair: tuple[Service, Service], shared_models: Path, own_server: RedisServer
) -> None:
    add_copy(shared_models, "wine", "2")

    async def tell() -> None:
        events = RedisEventLog(own_server.url)
        await announce(events, "wine/2 is promoted")
        await events.close()

    asyncio.run(tell())
    for service in pair:
        assert settles_on(service, "wine", "2")
        assert eventually(partial(_was_told, service))
        assert service.events(TOLD)[0]["reasons"] == ["wine/2 is promoted"]


def test_without_redis_nobody_is_told(models: Path, tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(models), "DATA_DIR": str(tmp_path), "ADMIN_TOKEN": ADMIN_TOKEN, "ROLES": "web"}
    with Service(environ) as one, Service(environ) as two:
        assert ask_admin(one, "models:reload")[0] == 200
        assert live(two, "wine") == "1"
        assert (count(one), count(two)) == ((1, 0, 0), (0, 0, 0))
