"""Imports point down only, modules introduce themselves, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from harness.house import House, length, parameters
from harness.service import ROOT

WINGS = (
    "main",
    "forkserve",
    "serving.cli",
    "serving.client",
    "serving.master",
    "serving.app",
    "serving.stores",
    "serving.settings",
    "serving.http",
    "serving.status",
    "serving.pictures",
    "serving.service",
    "serving.schedules",
    "serving.training",
    "serving.monitoring",
    "serving.entities",
    "serving.jobs",
    "serving.predict",
    "serving.events",
    "serving.telemetry",
    "serving.process",
    "serving.shared",
    "cache",
    "serving.storage",
    "serving.errors",
    "registry",
)
"""From the top down: a module imports from its own wing and from those below it."""

PACKAGES = ("cache", "forkserve", "registry", "serving")
HOLDERS_OF_SETTINGS = {"main", "serving.app", "serving.stores", "serving.cli", "serving.master"}


@cache
def modules() -> dict[str, ast.Module]:
    files = [
        ROOT / "main.py",
        *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")),
    ]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in files}


def wing(module: str) -> str | None:
    """The name in WINGS that a module belongs to; None for a module that is not ours."""
    return next((name for name in WINGS if module == name or module.startswith(f"{name}.")), None)


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_wing() -> None:
    assert [module for module in modules() if wing(module) is None and module != "serving.__init__"] == []


def test_imports_only_point_down() -> None:
    broken = []
    for module, tree in modules().items():
        for other in imported(tree):
            here, there = wing(module), wing(other)
            if here and there and WINGS.index(here) > WINGS.index(there):
                broken.append(f"{module} imports {other}")
    assert broken == []


def test_the_registry_knows_neither_http_nor_the_serving_package() -> None:
    forbidden = {"serving", "main", "fastapi", "starlette", "uvicorn", "gunicorn", "http"}
    found = {
        f"{module} imports {other}"
        for module, tree in modules().items()
        if module.startswith("registry")
        for other in imported(tree)
        if other.split(".")[0] in forbidden
    }
    assert found == set()


def test_the_cache_knows_neither_models_nor_http() -> None:
    forbidden = {"serving", "registry", "main", "fastapi", "starlette", "sklearn", "http"}
    found = {
        f"{module} imports {other}"
        for module, tree in modules().items()
        if module.startswith("cache")
        for other in imported(tree)
        if other.split(".")[0] in forbidden
        if wing(other) != "serving.storage" or other.startswith("serving.storage.http")
    }
    assert found == set()


def test_the_client_knows_nothing_of_the_service() -> None:
    found = {
        f"{module} imports {other}"
        for module, tree in modules().items()
        if module.startswith("serving.client")
        for other in imported(tree)
        if wing(other) not in (None, "serving.client")
    }
    assert found == set()


def test_only_those_who_compose_hold_the_settings() -> None:
    holders = {module for module, tree in modules().items() if "serving.settings.Settings" in imported(tree)}
    assert {wing(module) for module in holders} <= HOLDERS_OF_SETTINGS


@pytest.mark.parametrize(
    ("here", "forbidden"), [("tests", {"bench"}), ("bench", {"tests"}), ("harness", {"tests", "bench"})]
)
def test_tests_and_benchmarks_share_the_harness_alone(here: str, forbidden: set[str]) -> None:
    files = (ROOT / here).rglob("*.py")
    broken = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in files
        for other in imported(ast.parse(path.read_text()))
        if other.split(".")[0] in forbidden
    ]
    assert broken == []


def test_a_module_opens_with_a_sentence() -> None:
    openings = {name: (ast.get_docstring(tree) or "").split("\n\n")[0] for name, tree in modules().items()}
    assert [name for name, opening in openings.items() if not opening.rstrip().endswith(".")] == []


def test_no_name_no_file_and_no_function_is_of_the_kind_that_hides_what_it_is() -> None:
    house = House(ROOT)
    assert house.repeated_classes() == []
    assert house.small_modules() == []
    assert not house.has_cycle()
    assert house.flat_files() <= 6
    assert [module for module in house.texts if module.endswith(".building")] == []
    assert [name for name, function in house.functions() if length(function) > 60 or parameters(function) > 8] == []


def test_importing_main_does_nothing() -> None:
    code = (
        "import sys, threading, main, serving.cli.parser\n"
        "heavy = {'numpy', 'sklearn', 'pandas', 'fastapi', 'joblib', 'gunicorn', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
