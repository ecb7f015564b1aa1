"""The entry to everything; importing it does nothing. Read this file first, then `serving/app.py`.

`gunicorn -c serving/master/gunicorn_conf.py main:app` serves, `uvicorn main:app --reload` is for development.
Imports stand inside functions where they are heavy: the number of numeric threads has to be set before numpy is
first imported, and `forkserve --help` should not wait for scikit-learn.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.cli.parser import parser
from serving.cli.serve import serve
from serving.cli.terminal import say
from serving.errors import CannotServe, InvalidSetting, ServingError
from serving.process.child import limit_numeric_threads
from serving.settings import Settings, warn_of_misspelt

if TYPE_CHECKING:
    from serving.app import Application


def __getattr__(name: str) -> Any:
    """`main.app`, built when it is asked for."""
    if name == "app":
        return web()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def web() -> Application:
    """The app; gunicorn asks for it once, in the master, before it forks."""
    limit_numeric_threads(os.environ)
    from registry.errors import RegistryError
    from serving.app import build, build_alerts
    from serving.storage.redis import InvalidRedisUrl
    from serving.telemetry import logs

    try:
        settings = Settings.from_env(os.environ)
        alerts = build_alerts(settings)
        logs.configure(settings.log_level, watch=alerts.watch)
        warn_of_misspelt(os.environ)
        return build(settings, alerts)
    except (InvalidSetting, RegistryError, InvalidRedisUrl, CannotServe) as error:
        sys.exit(f"forkserve: {error}")


def run() -> int:
    """The `forkserve` command."""
    limit_numeric_threads(os.environ)
    sys.path.insert(0, str(Path.cwd()))  # as gunicorn does: artefacts may need modules of the project they serve
    arguments = parser().parse_args()
    try:
        settings = Settings.from_env(os.environ)
    except InvalidSetting as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    if arguments.command is serve:
        serve(arguments, settings)
    from registry.errors import RegistryError
    from serving.storage.redis import InvalidRedisUrl
    from serving.telemetry import logs

    logs.configure("warning")
    try:
        status: int = arguments.command(arguments, settings)
    except (RegistryError, InvalidRedisUrl, ServingError) as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(run())
