"""What is recorded of a sample's distributions: little, round, and of no single row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from registry.model import LoadedModel
from registry.outputs import Layout
from registry.rows.features import Feature
from registry.store.add import add_version
from registry.store.distributions import MIN_COUNT, Distribution, Distributions, describe
from registry.store.manifest import Manifest, encode_manifest, read_manifest

RNG = np.random.default_rng(7)
VALUE = Layout(("value",))


def of(column: Any, **feature: Any) -> Distribution | None:
    rows = np.asarray(column, object if feature.get("kind") == "text" else np.float64).reshape(-1, 1)
    described = Feature(name="a", **({"kind": "number"} | feature))
    return describe([described], rows, VALUE, np.zeros((len(rows), 1))).features.get("a")


def one(column: Any, **feature: Any) -> Distribution:
    found = of(column, **feature)
    assert found is not None
    return found


def test_numbers_are_counted_in_ten_bins_between_round_edges() -> None:
    column = RNG.normal(100.0, 15.0, 5000)
    found = one(column)
    assert found.edges == [64.0, 72.0, 80.0, 88.0, 96.0, 104.0, 112.0, 120.0, 128.0, 136.0, 144.0]
    inner = zip(found.edges[1:-2], found.edges[2:-1], strict=True)
    counted = [np.mean((column >= low) & (column < high)) for low, high in inner]
    assert np.asarray(found.shares[1:-1]) / 1000 == pytest.approx(counted, abs=0.001)
    assert sum(found.shares) == pytest.approx(1000, abs=5)


@pytest.mark.parametrize(
    "column",
    [
        np.r_[RNG.normal(size=1000), 1e300],  # an outlier does not make all others one bin
        np.exp(RNG.normal(0, 3, 3000)),
        RNG.normal(size=500) * 1e-200,
        RNG.normal(size=500) * 1e200 + 1e202,
        1e9 + RNG.random(500),
        np.r_[np.zeros(995), np.arange(5.0)],
        np.arange(20.0),
    ],
)
def test_bounds_hold_most_of_any_numbers(column: Any) -> None:
    found = one(column)
    assert len(found.shares) == 10
    assert sum(found.shares) == pytest.approx(1000, abs=5)
    assert found.low <= np.percentile(column, 1)
    assert found.high >= np.percentile(column, 99)
    assert not {found.low, found.high} & {value for value in column.tolist() if value % 1}


@pytest.mark.parametrize("column", [[1.7e308, -1.7e308] * 40, [5e-324, 0.0] * 15 + [1e-323] * 3 + [2e-323]])
def test_extreme_columns_are_described_or_left_out(column: list[float]) -> None:
    found = of(column)
    assert found is None or sum(found.shares) == pytest.approx(1000, abs=5)


def test_few_values_are_listed_only_if_several_rows_have_each() -> None:
    assert one([0.0] * 30 + [1.0] * 10).values == (0.0, 1.0)
    assert one([0.0] * 30 + [1.0] * 10).shares == (750, 250)
    alone = one([0.0] * 36 + [1.0] * 4)
    assert alone.values == ()
    assert len(alone.shares) == 10


def test_missing_values_have_a_share_of_all_rows() -> None:
    found = one([0.0] * 20 + [1.0] * 20 + [np.nan] * 10, nullable=True)
    assert (found.shares, found.missing) == ((400, 400), 200)
    assert one([np.nan] * 50) == Distribution(missing=1000)
    assert of([1.0] * 19) is None


def test_rare_categories_and_unlisted_ones_are_not_named() -> None:
    categories = tuple(f"c{n}" for n in range(10_000))
    column = [0.0] * 60 + [1.0] * 30 + [9_998.0] * (MIN_COUNT - 1) + [10_000.0] * 6
    found = one(column, kind="category", categories=categories, open=True)
    assert found.values == (0.0, 1.0)
    assert found.shares == (600, 300)
    many = one(RNG.integers(0, 10_000, 9_000), kind="category", categories=categories)
    assert len(many.values) <= 10


def test_texts_are_counted_by_their_characters_and_times_by_days() -> None:
    found = one(["x" * n for n in range(100)], kind="text")
    assert (found.low, found.high) == (0.0, 100.0)
    day = 24 * 3600 * 10**6
    times = one(np.arange(700) * day + 12345, kind="datetime")
    assert times.low % day == times.high % day == 0.0
    assert len(times.shares) == 10


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model of every kind of feature."""
    count = 300
    table = pd.DataFrame(
        {
            "number": RNG.normal(size=count),
            "kind": RNG.choice(["a", "b", "c"], count),
            "note": [f"note {'word ' * (n % 7)}" for n in range(count)],
        }
    )
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["kind"]), (TfidfVectorizer(), "note"), ("passthrough", ["number"])
    )
    target = np.where(table["number"] > 0, "yes", "no")
    model = make_pipeline(encode, LogisticRegression()).fit(table, target)
    return add_version(tmp_path_factory.mktemp("models"), "mixed", model, table)


def test_a_version_records_its_features_and_its_output(mixed: LoadedModel) -> None:
    found = mixed.manifest.distributions
    assert found is not None
    assert found.rows == 300
    assert list(found.features) == ["number", "kind", "note"]
    assert len(found.features["kind"].values) == 3
    (output,) = found.outputs.values()
    assert sum(output.shares) == 1000
    assert read_manifest_of(mixed) == mixed.manifest


def read_manifest_of(model: LoadedModel) -> Manifest:
    return msgspec.json.decode(encode_manifest(model.manifest), type=Manifest)


def test_two_thousand_features_take_less_than_10_kb_and_the_most_important_stay(tmp_path: Path) -> None:
    columns = [f"a feature with a longer name {n}" for n in range(2000)]
    table = pd.DataFrame(RNG.normal(size=(60, 2000)), columns=columns)
    weights = np.zeros(2000)
    weights[1234] = 5.0
    model = LinearRegression().fit(table, table.to_numpy() @ weights)
    model.coef_ = weights
    added = add_version(tmp_path, "wide", model, table)
    found = added.manifest.distributions
    assert found is not None
    assert columns[1234] in found.features
    assert 20 < len(found.features) < 200
    without = msgspec.structs.replace(added.manifest, distributions=None)
    assert len(encode_manifest(added.manifest)) - len(encode_manifest(without)) < 10_000


def test_each_target_has_a_distribution_of_its_output(tmp_path: Path) -> None:
    table = pd.DataFrame(RNG.normal(size=(200, 2)), columns=["x", "y"])
    truth = np.c_[table["x"] > 0, table["y"] > 1].astype(int)
    model = MultiOutputClassifier(LogisticRegression()).fit(table, truth)
    found = add_version(tmp_path, "two", model, table, targets=["first", "second"]).manifest.distributions
    assert found is not None
    assert list(found.outputs) == ["first", "second"]
    assert found.outputs["second"].values == (0.0, 1.0)


def test_a_manifest_of_before_is_read_as_it_was(mixed: LoadedModel, tmp_path: Path) -> None:
    content = json.loads(encode_manifest(mixed.manifest))
    del content["distributions"]
    directory = tmp_path / "mixed" / "1"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(directory).distributions is None


def test_what_does_not_fit_is_dropped_from_the_end() -> None:
    each = Distribution(low=0.0, high=1.0, shares=(100,) * 10)
    many = Distributions(rows=50, features={f"f{n}": each for n in range(500)}, outputs={"": each})
    kept = many.trimmed({"f499": 2.0, "f3": 1.0})
    assert {"f499", "f3", "f0"} <= set(kept.features)
    assert list(kept.outputs) == [""]
    assert list(kept.features)[-1] == "f499"
    long_name = Distributions(rows=50, features={"x" * 20_000: each}, outputs={})
    assert long_name.trimmed({}).features == {}
