"""`forkserve keys`: makes API keys, and lists those that the settings name."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime

from serving.cli.command import argument, command, fail, say
from serving.settings import Settings


@command(
    argument("action", choices=("new", "list"), help="make a key, or list those of the settings"),
    argument("name", nargs="?", help="name of the new key, as logs and jobs show it"),
    argument("--scopes", default="predict", help="some of predict, write, read, admin, separated by commas"),
    argument("--rate", default="", help="requests that all keys of this name may send, such as 600/minute"),
    argument("--models", default="", help="models that it may use, separated by commas; default all"),
    argument("--expires", default="", help="date or time (ISO 8601, UTC) from which on it is refused"),
)
def keys(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make an API key, which is printed once, with its entry for API_KEYS; or list the keys there are."""
    if arguments.action == "list":
        return _list(settings)
    from serving.http.keys import digest_of, new_secret, parse_entry

    secret = new_secret()
    scopes, models = (text.replace(" ", "") for text in (arguments.scopes, arguments.models))
    parts = [arguments.name or "", digest_of(secret).hex(), scopes, arguments.rate, models, arguments.expires]
    entry = ":".join(parts).rstrip(":")
    try:
        parse_entry(entry)
    except ValueError as error:
        return fail(f"the entry {error}")
    say(f"Key, shown only now:  {secret}")
    say(f"Entry for API_KEYS:   {entry}")
    return 0


def _list(settings: Settings) -> int:
    from serving.app import build_keys

    now = time.time()
    for key in sorted(build_keys(settings).listed, key=lambda key: key.name):
        rate = f"{key.rate.requests} in {key.rate.period:g} s" if key.rate else "any rate"
        expires = "never expires"
        if key.expires is not None:
            moment = datetime.fromtimestamp(key.expires, UTC).isoformat(timespec="minutes")
            expires = f"{'expired' if key.expires <= now else 'expires'} {moment}"
        models = ",".join(sorted(key.models)) or "all models"
        say(f"{key.name:24} {','.join(sorted(key.scopes)):24} {rate:16} {models:24} {expires}")
    return 0
