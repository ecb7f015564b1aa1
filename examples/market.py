"""Five demo models that predict the next days of a share from one kind of record, its day on the market."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.demo import SEED, Demo, Table

SOURCE = "Quandl WIKI Prices, public domain; in bokeh-sampledata, BSD-3-Clause"

FEATURES = (
    "return_1d",
    "return_5d",
    "return_20d",
    "overnight_gap",
    "range_1d",
    "range_5d",
    "close_position",
    "volume_ratio_1d",
    "volume_ratio_5d",
    "volatility_5d",
    "volatility_20d",
)
SHARES = 5
AHEAD = 5
"""Trading days that the targets look ahead, at most."""

RECORDED_DAYS = 250
"""Records kept of each share, the latest: a year."""


def market_days() -> pd.DataFrame:
    """12,000 days of AAPL, FB, GOOG, IBM and MSFT from 2000 to March 2013, ordered by time.

    Columns: ticker, date, the day's prices and volume, and FEATURES, which look back up to 20 trading days. Returns are
    of adjusted prices, so splits and dividends do not count as returns.
    """
    from bokeh_sampledata.stocks import data

    return (
        pd.concat([_with_features(days) for _, days in data.groupby("ticker")])
        .dropna(subset=list(FEATURES))
        .sort_values(["date", "ticker"], ignore_index=True)
    )


def market_records() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Ticker, date and columns of the last days of each share."""
    recent = market_days().groupby("ticker").tail(RECORDED_DAYS)
    columns = ["open", "high", "low", "close", "volume", *FEATURES]
    for day in recent[["ticker", "date", *columns]].to_dict("records"):
        yield day["ticker"], day["date"].date().isoformat(), {name: day[name] for name in columns}


def _with_features(days: pd.DataFrame) -> pd.DataFrame:
    """One share's days with FEATURES: parts of prices, ratios to the mean of 20 days, standard deviations."""
    days = days.sort_values("date")
    adjusted, spread = days["adj_close"], days["high"] - days["low"]
    daily = adjusted.pct_change()
    share = spread / days["close"]
    opening = days["open"] * adjusted / days["close"]
    usual = days["volume"].rolling(20).mean()
    return days.assign(
        return_1d=daily,
        return_5d=adjusted.pct_change(5),
        return_20d=adjusted.pct_change(20),
        overnight_gap=opening / adjusted.shift() - 1,
        range_1d=share,
        range_5d=share.rolling(5).mean(),
        close_position=((days["close"] - days["low"]) / spread.where(spread > 0)).fillna(0.5),
        volume_ratio_1d=days["volume"] / usual,
        volume_ratio_5d=days["volume"].rolling(5).mean() / usual,
        volatility_5d=daily.rolling(5).std(),
        volatility_20d=daily.rolling(20).std(),
    )


def _table_of(name: str, target: Callable[[pd.DataFrame], pd.Series[Any]]) -> Callable[[], Table]:
    """The table of FEATURES, and the `target` of each share's days; days whose target is not yet known are dropped."""

    def read() -> Table:
        days = market_days()
        truth = pd.concat([target(of_share) for _, of_share in days.groupby("ticker")]).sort_index()
        known = truth.notna()
        return days.loc[known, list(FEATURES)].reset_index(drop=True), truth[known].reset_index(drop=True).rename(name)

    return read


def direction(days: pd.DataFrame) -> pd.Series[Any]:
    """Label each day `up` if the share closes higher on the next day, else `down`."""
    following = days["return_1d"].shift(-1)
    return _labels(following > 0, following, "up", "down")


def volume_surge(days: pd.DataFrame) -> pd.Series[Any]:
    """Label each day `surge` if the next day's volume exceeds 1.5 times the mean of the last twenty, else `usual`."""
    following = days["volume"].shift(-1)
    return _labels(following > 1.5 * days["volume"].rolling(20).mean(), following, "surge", "usual")


def volatility(days: pd.DataFrame) -> pd.Series[Any]:
    """The standard deviation of the next five days' returns."""
    return days["return_1d"].rolling(AHEAD).std().shift(-AHEAD)


def _labels(truth: pd.Series[bool], known: pd.Series[Any], yes: str, no: str) -> pd.Series[Any]:
    return pd.Series(np.where(truth, yes, no), index=truth.index, dtype=object).where(known.notna())


def _boosting(kind: Callable[..., Any]) -> Any:
    return kind(max_iter=40, learning_rate=0.08, max_leaf_nodes=8, random_state=SEED)


def _market(name: str, target: Callable[[pd.DataFrame], pd.Series[Any]], estimator: Callable[[], Any]) -> Demo:
    column = name.replace("-", "_")
    return Demo(f"market-{name}", SOURCE, _table_of(column, target), estimator, gap=AHEAD * SHARES, entities=True)


MARKET = (
    _market("direction", direction, lambda: make_pipeline(StandardScaler(), LogisticRegression(random_state=SEED))),
    _market("return", lambda days: days["return_1d"].shift(-1), lambda: make_pipeline(StandardScaler(), Ridge())),
    _market("range", lambda days: days["range_1d"].shift(-1), lambda: _boosting(HistGradientBoostingRegressor)),
    _market("volume-surge", volume_surge, lambda: _boosting(HistGradientBoostingClassifier)),
    _market("volatility", volatility, lambda: _boosting(HistGradientBoostingRegressor)),
)
