"""`forkserve check`: finds before a deploy whatever would keep the service from starting or answering."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from serving.cli.command import command, fail, say
from serving.settings import Settings, find_misspelt, find_platform

if TYPE_CHECKING:
    from serving.schedules.parse import Schedule


@command()
def check(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Check settings, models and the fork before a deploy; prints a line per fault."""
    faults = [
        *_misspelt_settings(),
        *_unusable_parts(settings),
        *_missing_default(settings),
        *_unfit_versions(settings),
    ]
    for warning in _risks(settings):
        say(f"warning: {warning}")
    if faults:
        return fail(*faults)
    say("ready to serve")
    return 0


def _misspelt_settings() -> Iterator[str]:
    for name, similar in find_misspelt(os.environ).items():
        yield f"{name} is not a setting; did you mean {similar}?"


def _unusable_parts(settings: Settings) -> Iterator[str]:
    from serving.app import build_alerts, build_keys, build_shared, read_schedules
    from serving.errors import CannotServe, InvalidRedisUrl, InvalidSetting

    try:
        build_shared(settings, build_alerts(settings))
        schedules = read_schedules(settings)
        build_keys(settings)
    except (InvalidSetting, InvalidRedisUrl, CannotServe) as error:
        yield str(error)
    else:
        for schedule in schedules:
            yield from _impossible_jobs(schedule)
    platform = find_platform(os.environ)
    if settings.is_exposed and not (platform and platform.is_private):
        yield f"HOST is {settings.host}, and anybody may use the service: set API_KEY, API_KEYS or API_KEYS_FILE"


def _missing_default(settings: Settings) -> Iterator[str]:
    from registry.errors import VersionRefused
    from registry.store.directory import model_directories
    from serving.errors import InvalidSetting
    from serving.http.protocols.mlflow import check_default

    try:
        names = sorted(directory.name for directory in model_directories(settings.model_dir))
        check_default(names, settings.default_model, is_needed=bool(settings.aip_predict_route))
    except VersionRefused:
        pass  # found among the versions
    except InvalidSetting as error:
        yield str(error)


def _risks(settings: Settings) -> Iterator[str]:
    """Why jobs may be lost, if their store can be asked: it need not be there before the service is."""
    from serving.errors import InvalidRedisUrl, StoreUnavailable
    from serving.stores import build_job_store

    async def ask() -> str | None:
        store = build_job_store(settings)
        try:
            return await store.risk()
        finally:
            await store.close()

    try:
        risk = asyncio.run(ask())
    except InvalidRedisUrl:
        return  # a fault
    except StoreUnavailable as error:
        yield str(error)
    else:
        if risk is not None:
            yield risk


def _impossible_jobs(schedule: Schedule) -> Iterator[str]:
    """What keeps a schedule from making a job now: it would count a failure at every firing."""
    from registry.errors import CannotTrain, ModelNotFound, VersionRefused

    try:
        schedule.action.request(*schedule.arguments)
    except VersionRefused:
        pass  # found among the versions
    except (ModelNotFound, CannotTrain) as error:
        yield f"SCHEDULES: {schedule.name!r}: {error}"


def _unfit_versions(settings: Settings) -> Iterator[str]:
    """Every version is tried as at a reload; a module to preload that starts a thread is a fault, too."""
    from registry.errors import VersionRefused
    from registry.registry import select_versions
    from registry.store.directory import directories, model_directories
    from registry.store.loader import load_version
    from serving.errors import CannotServe
    from serving.master import prefork
    from serving.process.trial import Trial

    root = settings.model_dir
    load = partial(load_version, root, options=settings.load_options, fallback=settings.model_fallback)
    try:
        prefork.import_modules(settings.preload_modules)
        prefork.check_single_thread()
        models = model_directories(root)
        for directory in (version for model in models for version in directories(model)):
            refusal = Trial(load, directory).refusal(settings.reload_timeout_seconds)
            if refusal is not None:
                yield str(refusal)
        for model in models:
            select_versions(model, settings.serve_versions)
    except (VersionRefused, CannotServe) as error:
        yield str(error)
