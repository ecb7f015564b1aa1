"""The part of a script or notebook that its classes need: their definitions, without the work around them.

A script that trains a model would train it again whenever its classes are loaded. So only those statements of its top
level are kept that bind a needed name or change what it stands for, and those that these need in turn. They keep their
lines, so that tracebacks point to the right ones.
"""

from __future__ import annotations

import ast
import json
import re
import symtable
from collections.abc import Iterator

STAR = "*"


def definitions(source: str, names: set[str]) -> str:
    """The statements of `source` that define `names`, on their own lines. Raises SyntaxError."""
    body = ast.parse(source).body
    bound = [set(bound_names(statement)) for statement in body]
    imported = _bound_by(body, ast.Import, ast.ImportFrom)
    defined = _bound_by(body, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    changed = [set(_changed_names(statement, defined)) - imported for statement in body]
    kept = set(_always(body))
    needed = set(names)
    while more := {
        index for index in range(len(body)) if index not in kept and needed & (bound[index] | changed[index])
    }:
        kept |= more
        needed |= {name for index in more for name in _used_names(body[index])}
    lines = {line for index in kept for line in _lines(body[index])}
    text = re.split("\r\n|\r|\n", source)
    last = max(lines, default=0)
    return "".join(f"{text[line - 1] if line in lines else ''}\n" for line in range(1, last + 1))


def bound_names(statement: ast.AST) -> Iterator[str]:
    """The names that a statement, or all of a module, binds at its own level; `*` for all names of another module."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield statement.name
        case ast.Import() | ast.ImportFrom():
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0]
        case ast.Name(ctx=ast.Store() | ast.Del()):
            yield statement.id
        case ast.Lambda():
            pass
        case _:
            for inner in ast.iter_child_nodes(statement):
                yield from bound_names(inner)


def cells(notebook: str) -> str:
    """The code of a Jupyter notebook, as one script; its cells of text and lines of magic are left out.

    Raises ValueError for a file that is no notebook.
    """
    try:
        found = [cell["source"] for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it has no cells") from error
    return script_of_cells(["".join(source) for source in found])


def script_of_cells(found: list[str]) -> str:
    """Cells of a notebook as one script, without magic and without cells that are no Python."""
    script = []
    for cell in found:
        lines = ["" if line.lstrip().startswith(("%", "!", "?")) else line for line in cell.splitlines()]
        text = "\n".join(lines)
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        script.append(text)
    return "\n".join(script) + "\n"


def _always(body: list[ast.stmt]) -> Iterator[int]:
    """Imports that may bring any name, or that change how the others are read."""
    for index, statement in enumerate(body):
        if isinstance(statement, ast.ImportFrom) and (
            statement.module == "__future__" or any(alias.name == STAR for alias in statement.names)
        ):
            yield index


def _used_names(statement: ast.stmt) -> Iterator[str]:
    """The names of the top level that a statement uses; arguments and variables of functions are none."""

    def used(table: symtable.SymbolTable, *, is_top: bool) -> Iterator[str]:
        for symbol in table.get_symbols():
            if symbol.is_referenced() if is_top else symbol.is_global():
                yield symbol.get_name()
        for inner in table.get_children():
            yield from used(inner, is_top=False)

    return used(symtable.symtable(ast.unparse(statement), "statement", "exec"), is_top=True)


def _bound_by(body: list[ast.stmt], *kinds: type[ast.stmt]) -> set[str]:
    return {name for statement in body if isinstance(statement, kinds) for name in bound_names(statement)}


def _changed_names(statement: ast.AST, defined: set[str]) -> Iterator[str]:
    """The names whose objects a statement may change: `CONFIG["a"] = 1`, `WORDS.update(...)`, `fill(WORDS)`.

    A class or function that is only handed to another, `evaluate(Model)`, is not changed by that.
    """
    match statement:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            yield from filter(None, map(_base, targets))
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            yield from filter(None, [_base(target)])
        case ast.Expr(value=ast.Call(func=function, args=arguments)):
            yield from filter(None, [_base(function)])
            yield from {argument.id for argument in arguments if isinstance(argument, ast.Name)} - defined
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            pass
        case _:
            for inner in ast.iter_child_nodes(statement):
                yield from _changed_names(inner, defined)


def _base(target: ast.expr) -> str | None:
    """The name whose attribute or item a target is."""
    base = target
    while isinstance(base, ast.Attribute | ast.Subscript):
        base = base.value
    return base.id if isinstance(base, ast.Name) and base is not target else None


def _lines(statement: ast.stmt) -> range:
    decorators = getattr(statement, "decorator_list", [])
    first = min(node.lineno for node in [statement, *decorators])
    return range(first, (statement.end_lineno or first) + 1)
