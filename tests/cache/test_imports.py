"""Modules that the cache must not import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cache

PACKAGE = Path(cache.__file__).parent
EXECUTES_WHAT_IT_READS = {
    "pickle",
    "_pickle",
    "cPickle",
    "pickletools",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
}


def imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value  # importlib.import_module("pickle")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_in_the_cache_can_execute_what_it_reads(path: Path) -> None:
    assert EXECUTES_WHAT_IT_READS.isdisjoint(imports(path.read_text()))


@pytest.mark.parametrize("source", ["import pickle", "from pickle import loads", "import pickle as p", "f('pickle')"])
def test_an_import_of_pickle_would_be_found(source: str) -> None:
    assert "pickle" in set(imports(source))
