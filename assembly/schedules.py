"""What fires at set times, and what it then does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from assembly.source import data_source
from registry.store.directory import find_model
from registry.training.script import live_manifest
from serving.entities.feeds import Poller, parse_feeds
from serving.events.building import build_event_log
from serving.jobs.job import JobRequest
from serving.master.announcements import announce
from serving.schedules.building import Schedules, build_schedules
from serving.schedules.schedule import Action, Called, Queued
from serving.settings import Settings
from serving.shared.reloads import Reloads
from serving.storage.http import Outbound
from serving.training.request import training_request


def schedules_of(settings: Settings, reloads: Reloads, outbound: Outbound) -> Schedules:
    """What fires at set times, and what shows it. Raises InvalidSetting, InvalidRedisUrl, CannotServe."""
    return build_schedules(
        settings.schedules,
        schedule_actions(settings, reloads, outbound),
        grace=settings.schedule_grace_seconds,
        directory=settings.data_dir,
        redis_url=settings.redis_url,
        max_queued=settings.job_max_queued,
    )


def schedule_actions(settings: Settings, reloads: Reloads, outbound: Outbound) -> Mapping[str, Action]:
    """What schedules can do, by the word that they use for it. The words after it are the function's parameters."""

    async def reload() -> None:
        if reloads.has_master or not settings.redis_url:
            reloads.request()  # and not waited for: the scheduler is replaced by it
            return
        events = build_event_log(settings.data_dir, settings.redis_url)
        await announce(events, "schedule")
        await events.close()

    def train(model: str) -> JobRequest:
        return train_request(settings.model_dir, model)

    poller = Poller(parse_feeds(settings.feeds), outbound, data_source(settings))

    async def poll(feed: str) -> None:
        await poller.poll(feed)

    return {"reload": Called(reload), "train": Queued(train), "poll": Called(poll, words=poller.names)}


def train_request(model_dir: Path, model: str) -> JobRequest:
    """The job that trains a model anew. Raises ModelNotFound, VersionRefused, CannotTrain."""
    return training_request(live_manifest(find_model(model_dir, model)))
