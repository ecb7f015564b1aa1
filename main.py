"""The entry to everything; importing it does nothing. Read this file first, then `serving/app.py`.

`forkserve serve` and `gunicorn -c serving/master/gunicorn_conf.py main:app` serve, `uvicorn main:app --reload` is for
development. Imports are inside functions: the path and the number of numeric threads have to be set first, and
`forkserve --help` should not wait for scikit-learn.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.app import Application

INTERRUPTED = 128 + 2
"""The exit status of a command that Ctrl-C has ended, as shells give it."""


def __getattr__(name: str) -> Any:
    """`main.app`, built when it is asked for."""
    if name == "app":
        return web()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def web() -> Application:
    """The app; gunicorn asks for it once, in the master, before it forks."""
    _prepare()
    from registry.errors import RegistryError
    from serving.app import build, start_logging
    from serving.errors import CannotServe, InvalidRedisUrl, InvalidSetting
    from serving.process.child import make_files_private
    from serving.settings import Settings

    make_files_private()
    try:
        settings = Settings.from_env(os.environ)
        return build(settings, start_logging(settings))
    except (InvalidSetting, RegistryError, InvalidRedisUrl, CannotServe) as error:
        sys.exit(f"forkserve: {error}")


def run() -> int:
    """The `forkserve` command."""
    _prepare()
    from serving.cli.command import fail
    from serving.cli.parser import parser
    from serving.errors import InvalidSetting, ServingError
    from serving.settings import Settings

    commands = parser()
    arguments = commands.parse_args()
    if arguments.run is None:
        commands.print_help()
        return 0
    arguments.load = web
    try:
        settings = Settings.from_env(os.environ)
    except InvalidSetting as error:
        return fail(error)
    from registry.errors import RegistryError
    from serving.telemetry import logs

    logs.configure("warning", settings.log_format)
    try:
        status: int = arguments.run(arguments, settings)
    except (RegistryError, ServingError) as error:
        return fail(error)
    except KeyboardInterrupt:
        fail("interrupted")
        return INTERRUPTED
    return status


def _prepare() -> None:
    """Let our own modules win over those of the start directory, and limit numeric threads before numpy is imported.

    The start directory comes last on the path: artefacts may need modules of the project that they are part of.
    """
    own, start = os.path.dirname(os.path.abspath(__file__)), os.getcwd()  # noqa: PTH100, PTH109, PTH120 - before imports
    if own not in sys.path:
        sys.path.insert(0, own)
    if own != start:
        sys.path[:] = [*(entry for entry in sys.path if entry not in ("", start)), start]
    from registry.imports import hide_arrow
    from serving.process.child import limit_numeric_threads

    limit_numeric_threads(os.environ)
    hide_arrow()


if __name__ == "__main__":
    sys.exit(run())
