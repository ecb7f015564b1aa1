"""Versions of libraries: those that a model was fitted with, and whether the installed ones answer as they did."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from typing import Literal, get_args

Format = Literal["joblib", "pickle", "skops", "xgboost", "lightgbm", "catboost"]
"""The format that a version's artefact is kept in."""

NATIVE_FORMATS: tuple[Format, ...] = ("xgboost", "lightgbm", "catboost")
"""Files of a library's own, which every later release of it promises to read."""

BOOSTERS = {"xgboost": ("xgboost", "xgboost-cpu"), "lightgbm": ("lightgbm",), "catboost": ("catboost",)}
"""Libraries with a format of their own, and the distributions that bring them."""

CHECKED = ("scikit-learn", *BOOSTERS, "python")
"""Libraries whose models may answer otherwise in another release, and Python, which a function's code is bound to."""

XGBOOST_JSON = re.compile(rb'"version": ?\[(\d+), ?(\d+), ?(\d+)\]')
XGBOOST_UBJSON = re.compile(rb"version\[#L\0{7}\x03[iU](.)[iU](.)[iU](.)", re.DOTALL)
CATBOOST_TAG = re.compile(rb"CatBoost release (\d+\.\d+(?:\.\d+)?)|Branch: tags/v(\d+\.\d+(?:\.\d+)?)")

assert set(NATIVE_FORMATS) < set(get_args(Format))


def installed_version(library: str) -> str | None:
    """The version of a library that is installed here, without importing it; None if it is not."""
    if library == "python":
        return platform.python_version()
    for distribution in BOOSTERS.get(library, (library,)):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def xgboost_version(content: bytes) -> dict[str, str]:
    """The version of XGBoost that a model of its own states, in JSON or UBJSON; {} if it states none."""
    written = [".".join(map(bytes.decode, numbers)) for numbers in XGBOOST_JSON.findall(content)]
    written += [".".join(str(number[0]) for number in numbers) for numbers in XGBOOST_UBJSON.findall(content)]
    return {"xgboost": written[-1]} if written else {}


def catboost_version(content: bytes) -> dict[str, str]:
    """The version of CatBoost that a model of its own states; {} if it states none."""
    stated = CATBOOST_TAG.search(content)
    return {"catboost": (stated[1] or stated[2]).decode()} if stated else {}


def mismatch(fitted: Mapping[str, str], artefact_format: Format) -> str:
    """A clause that names both versions of each library that differs in a way that it does not promise; "" if none.

    Patch releases are compatible. A booster's own file may be older than its library; LightGBM and CatBoost keep such a
    file inside their pickles too.
    """
    clauses = []
    for library in CHECKED:
        here = installed_version(library)
        if library not in fitted or here is None:
            continue
        then, now = release(fitted[library]), release(here)
        keeps_file = library in ("lightgbm", "catboost") or library == artefact_format
        if then != now and not (keeps_file and then < now):
            clauses.append(f"fitted with {library} {fitted[library]}, this is {here}")
    return "; ".join(clauses)


def release(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    major, minor = [*numbers, 0, 0][:2]
    return major, minor


def refusal(clause: str) -> str:
    """The sentence that refuses a model for its `mismatch`."""
    return (
        f"was {clause}: its answers could be wrong; fit it again with this version, "
        "install the one that it was fitted with, or add it with --force-version"
    )
