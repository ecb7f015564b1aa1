"""What a version's manifest says is usual in its data: recorded when it is added, and again from other data."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pandas as pd

from registry.errors import CannotAdd
from registry.model import LoadedModel
from registry.store.aliases import alone
from registry.store.directory import write_whole
from registry.store.distributions import MIN_ROWS, Distributions, describe
from registry.store.intake import instances_of
from registry.store.listing import FILENAME
from registry.store.manifest import ExplainerRecord, Manifest, encode_manifest


def most_important(manifest: Manifest, explainer: ExplainerRecord | None) -> Distributions | None:
    """The distributions that a manifest has room for; a feature is as important as the group that it is in."""
    if manifest.distributions is None:
        return None
    importance = {} if explainer is None else explainer.importance
    of_members = {one: importance.get(group, 0.0) for group, members in manifest.groups.items() for one in members}
    return manifest.distributions.trimmed(importance | of_members)


def describe_version(root: Path, model: LoadedModel, table: pd.DataFrame) -> int:
    """Record what is usual in a table of the input of a version below `root`; the number of rows that fit.

    Nothing else of the version changes. Raises CannotAdd, and then nothing does; ModelFailed.
    """
    names = list(model.schema.names)
    if missing := [name for name in names if name not in table]:
        raise CannotAdd(f"the table has no column {missing[0]!r}")
    rows, places = model.schema.fitting_rows(instances_of(table[names]))
    if len(places) < MIN_ROWS:
        raise CannotAdd(f"{len(places)} rows of the table fit the features; at least {MIN_ROWS} must")
    found = describe(model.manifest.features, rows, model.layout, model.outputs(rows))
    described = msgspec.structs.replace(model.manifest, distributions=found)
    described = msgspec.structs.replace(described, distributions=most_important(described, described.explainer))
    with alone(root / model.name):
        write_whole(root / model.name / model.version / FILENAME, encode_manifest(described))
    return len(places)
