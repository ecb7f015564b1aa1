"""The product's modules in a checkout, parsed: how large they are, what they import, what they define."""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

TOPS = ("main.py", "forkserve", "forkserve.py", "assembly", "cache", "commands", "registry", "remote", "serving")
"""The places of product code in a checkout; some exist only in earlier versions."""

IN_SERVING = ("assembly", "commands", "remote", "serving")
SMALL_LINES = 25

Function = ast.FunctionDef | ast.AsyncFunctionDef


class House:
    """The product's modules in one checkout, parsed."""

    def __init__(self, root: Path) -> None:
        files = [path for top in TOPS for path in ([root / top] if top.endswith(".py") else (root / top).rglob("*.py"))]
        self.texts = {_module(path.relative_to(root)): path.read_text() for path in files if path.exists()}
        self.trees = {module: ast.parse(text) for module, text in self.texts.items()}
        self.packages = {_module(path.relative_to(root)) for path in files if path.name == "__init__.py"}
        self.imports = {module: set(self._imported(module)) - {module} for module in self.texts}

    def tree(self) -> Iterator[str]:
        """The packages as lines: each with the sentence that its docstring begins with, and its modules below it."""
        yield from self._modules_of("")
        for package in sorted(self.packages, key=lambda name: name.split(".")):
            depth = package.count(".")
            name = "    " * depth + package.rpartition(".")[2] + "/"
            yield f"{name:<24}{_sentence(self.trees[package])}"
            yield from ("    " * (depth + 1) + line for line in self._modules_of(package))

    def _modules_of(self, package: str) -> list[str]:
        names = sorted(
            module.rpartition(".")[2]
            for module in self.texts
            if module.rpartition(".")[0] == package and module not in self.packages
        )
        return textwrap.wrap(", ".join(names), 112 - 4 * package.count("."))

    def lines(self, *tops: str) -> int:
        """Lines of the modules below these, or of all."""
        return sum(text.count("\n") for module, text in self.texts.items() if not tops or module.split(".")[0] in tops)

    def flat_files(self) -> int:
        """Files that lie directly in serving/."""
        return (
            sum(module.count(".") == 1 and module not in self.packages for module in self.texts if _in_serving(module))
            + 1
        )

    def small_modules(self) -> list[str]:
        """Modules below SMALL_LINES lines that a single module imports."""
        importers = Counter(other for imported in self.imports.values() for other in imported)
        return [
            module
            for module, text in self.texts.items()
            if module not in self.packages and text.count("\n") < SMALL_LINES and importers[module] == 1
        ]

    def functions(self) -> Iterator[tuple[str, Function]]:
        """All functions and methods by name."""
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    yield f"{module}.{node.name}", node

    def repeated_classes(self) -> list[str]:
        """Names of public classes that stand more than once."""
        names = Counter(
            node.name
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        )
        return [name for name, count in names.items() if count > 1]

    def has_cycle(self) -> bool:
        """Return whether modules import each other in a circle at the top level."""
        try:
            TopologicalSorter(
                {module: set(self._imported(module, top_level=True)) - {module} for module in self.texts}
            ).prepare()
        except CycleError:
            return True
        return False

    def _imported(self, module: str, *, top_level: bool = False) -> Iterator[str]:
        tree = self.trees[module]
        for node in tree.body if top_level else ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    if name in self.texts:
                        yield name
                    elif node.module in self.texts:
                        yield node.module


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _sentence(tree: ast.Module) -> str:
    return (ast.get_docstring(tree) or "").split("\n")[0]


def _in_serving(module: str) -> bool:
    return module.startswith("serving.")


def length(function: Function) -> int:
    """Lines of the function without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every)
