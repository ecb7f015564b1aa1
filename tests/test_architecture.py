"""Imports point down only, modules introduce themselves, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from bench.service import ROOT

LAYERS: list[set[str]] = [
    {"main"},
    {"commands.parser"},
    {"commands"},
    {"assembly"},
    {"serving.gunicorn_conf", "serving.check"},
    {"serving.reloading"},
    {
        "serving.app",
        "serving.worker",
        "serving.arbiter",
        "serving.prefork",
        "serving.greeting",
        "serving.trial",
    },
    {"serving.parts", "serving.protocol", "serving.routes", "serving.runners"},
    {"serving.background", "serving.streams", "serving.figures"},
    {"serving.arrivals"},
    {
        "serving.asgi",
        "serving.submitting",
        "serving.training",
        "serving.entities",
        "serving.outcomes",
        "serving.recording",
    },
    {"serving.admission", "serving.lasting"},
    {
        "serving.problems",
        "serving.inference",
        "serving.reading",
        "serving.schedules",
        "serving.table",
    },
    {"serving.announcements", "serving.batching", "serving.jobs"},
    {"serving.batch"},
    {"serving.cost"},
    {"serving.operations"},
    {"serving.alerts", "serving.feeds"},
    {"serving.executor", "serving.events", "serving.data", "serving.memory", "serving.outbound", "serving.tracing"},
    {"serving.clients", "serving.limits"},
    {
        "serving.code_pages",
        "serving.logs",
        "serving.metrics",
        "serving.numeric_threads",
        "serving.processes",
        "serving.reloads",
        "serving.settings",
        "serving.storage",
        "serving.transport",
    },
    {"serving.cors", "serving.feeds.feed", "serving.limits.rate"},
    {"serving.errors", "cache", "registry", "examples", "remote"},
]
"""From the top down. A module may import what is below it, and its own package."""

PACKAGES = ("assembly", "cache", "commands", "registry", "remote", "serving", "examples")
ALLOWED_BESIDES = {("examples", "registry")}
HOLDERS_OF_SETTINGS = {"main", "assembly", "commands", "commands.parser", "serving.gunicorn_conf", "serving.check"}


@cache
def modules() -> dict[str, ast.Module]:
    files = [
        ROOT / "main.py",
        *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")),
    ]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in files}


def unit(module: str) -> str | None:
    """The name in LAYERS that a module belongs to; None for a module that is not ours."""
    names = [name for layer in LAYERS for name in layer if module == name or module.startswith(f"{name}.")]
    return max(names, key=len, default=None)


def rank(name: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in {"main", *PACKAGES}


def test_every_module_has_a_place_in_the_layers() -> None:
    packages = {"serving.__init__", "serving.routes.__init__"}
    assert [module for module in modules() if unit(module) is None and module not in packages] == []


def test_imports_only_point_down() -> None:
    broken = []
    for module, tree in modules().items():
        for other in filter(ours, imported(tree)):
            here, there = unit(module), unit(other)
            if here is None or there is None or here == there or (here, there) in ALLOWED_BESIDES:
                continue
            if module != "main" and rank(here) >= rank(there):
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
    }
    assert found == set()


def test_only_those_who_compose_hold_the_settings() -> None:
    holders = {module for module, tree in modules().items() if "serving.settings.Settings" in imported(tree)}
    assert {unit(module) for module in holders} <= HOLDERS_OF_SETTINGS


@pytest.mark.parametrize("module", modules())
def test_a_module_opens_with_a_sentence(module: str) -> None:
    docstring = ast.get_docstring(modules()[module]) or ""
    assert docstring.split("\n\n")[0].rstrip().endswith(".")


def test_importing_main_does_nothing() -> None:
    code = (
        "import sys, threading, main\n"
        "heavy = {'numpy', 'sklearn', 'pandas', 'fastapi', 'joblib', 'gunicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
