"""forkserve's app under gunicorn's own master and the unmodified uvicorn-worker."""

from __future__ import annotations

import os

from serving.process.kernel import WEB, rename
from serving.telemetry.logs import GunicornLogger

bind = f"127.0.0.1:{os.environ['PORT']}"
workers = int(os.environ["WEB_CONCURRENCY"])
worker_class = "uvicorn_worker.UvicornWorker"
preload_app = True
control_socket_disable = True
keepalive = 65
max_requests = int(os.environ["MAX_REQUESTS"])
max_requests_jitter = int(os.environ["MAX_REQUESTS_JITTER"])
logger_class = GunicornLogger


def post_worker_init(_worker: object) -> None:
    """Have the name that our own worker has, and say what it says, so that the benchmark finds it."""
    rename(WEB)
    print('{"event":"Worker started"}', flush=True)
