"""Finds the own code of a model: the source files of the modules that its artefact names, and of what those import.

Own is what lies beside the artefact, in the start directory, on PYTHONPATH, or where `--code` says, unless Python or an
installed package defines the same. A package goes with the version whole, a single module alone. Nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from registry.errors import CannotAdd
from registry.store.code import MAIN, MAX_BYTES, MAX_FILES
from registry.store.definitions import bound_names, cells, definitions, script_of_cells

HOME = Path(__file__).resolve().parents[2]
OURS = frozenset({"bench", "cache", "examples", "forkserve", "harness", "main", "registry", "serving", "tests"})
"""Top-level modules in HOME, which no version takes along."""

MAX_DATA_BYTES = 1 << 20
"""A larger file of a package, if it is no Python, goes with the version only if `--code` names it."""

COMPILED = (".pyc", ".pyd", ".pyo", ".so")
INIT = "__init__.py"
MAIN_FILE = f"{MAIN}.py"


@dataclass(frozen=True)
class Sources:
    """Where own code is looked for: what is `given` by name, then in `places`.

    `main` is the script of `__main__`, as a path or as text; `artefact` is what errors name.
    """

    given: tuple[Path, ...] = ()
    places: tuple[Path, ...] = ()
    main: Path | str | None = None
    artefact: str = "the estimator"

    @classmethod
    def of_process(cls) -> Sources:
        """For objects of this process: where it imports from, and its script or notebook."""
        main = sys.modules.get(MAIN)
        file, inputs = getattr(main, "__file__", None), getattr(main, "In", None)
        if file is None and isinstance(inputs, list):
            return cls(main=script_of_cells(inputs))
        return cls(main=None if file is None else Path(file))


Name = tuple[str, str]
"""A module, and the qualified name of a class or function in it; "" for the module itself."""


def collect_code(names: Iterable[str], sources: Sources) -> dict[str, bytes]:
    """The own code that an artefact needs, by path; its `names` are such as `Survey` has. Raises CannotAdd."""
    collector = _Collector(sources)
    collector.take({(module, name) for module, _, name in (name.rpartition(":") for name in names)})
    return collector.read()


def collect_imports(script: Path, content: bytes, sources: Sources) -> dict[str, bytes]:
    """The own code that a script imports, by path, without the script itself. Raises CannotAdd."""
    collector = _Collector(sources)
    collector.take(set(_imported(_parsed(content, script.name), "")))
    return collector.read()


def merged(first: Mapping[str, bytes], second: Mapping[str, bytes]) -> dict[str, bytes]:
    """Own code of two origins together. Raises CannotAdd if they have different files of one name."""
    for path in first.keys() & second.keys():
        if first[path] != second[path]:
            raise CannotAdd(f"there are two different files {path} in the own code of this version; rename one")
    return {**first, **second}


class _Collector:
    """Own code as it is found: a file, or a text made of one, by its path below the version's `code`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._places = [*sources.places, *_import_places()]
        self._found: dict[str, Path | bytes] = {}
        self._given: set[str] = set()
        """Top-level names of modules that were given or taken; nothing installed is preferred to them."""

    def take(self, names: set[Name]) -> None:
        """Take the modules of `names`, what is given, and what they import. Raises CannotAdd."""
        main = {name.partition(".")[0] for module, name in names if module == MAIN}
        wanted = [name for name in sorted(names) if name[0] != MAIN]
        scripts = [path for path in self._sources.given if main and self._take_main(path, main, must=False)]
        for path in self._sources.given:
            if path not in scripts:
                wanted += self._take_given(path, {module.partition(".")[0] for module, _ in wanted})
        if main and not scripts and not (self._sources.main and self._take_main(self._sources.main, main, must=True)):
            raise CannotAdd(self._lacks_main(main))
        if MAIN_FILE in self._found:
            wanted += self._imports(MAIN_FILE, MAIN)
        seen: set[Name] = set()
        while wanted:
            name = wanted.pop()
            if name not in seen:
                seen.add(name)
                wanted += self._follow(*name)

    def read(self) -> dict[str, bytes]:
        """The bytes of all files found. Raises CannotAdd."""
        sizes = [path.stat().st_size if isinstance(path, Path) else len(path) for path in self._found.values()]
        if sum(sizes) > MAX_BYTES or len(sizes) > MAX_FILES:
            largest = max(zip(sizes, self._found, strict=True))[1]
            raise CannotAdd(
                f"the own code has {len(sizes)} files of {sum(sizes) >> 20} MB, but at most {MAX_FILES} of "
                f"{MAX_BYTES >> 20} MB go with a version; the largest is {largest}"
            )
        try:
            return {
                path: found.read_bytes() if isinstance(found, Path) else found
                for path, found in sorted(self._found.items())
            }
        except OSError as error:
            raise CannotAdd(f"{error.filename}: {error.strerror}") from error

    def _take_main(self, script: Path | str, names: set[str], *, must: bool) -> bool:
        """Take from a script the definitions of `names`, if it has them all. Raises CannotAdd if it `must`."""
        if isinstance(script, Path) and not (script.is_file() and script.suffix in (".py", ".ipynb")):
            return False
        label = script.name if isinstance(script, Path) else "the notebook"
        text = _script(script) if isinstance(script, Path) else script
        bound = set(bound_names(_parsed(text, label)))
        if not names <= bound | ({*names} if "*" in bound else set()):
            if must:
                raise CannotAdd(f"{label} does not define {', '.join(sorted(names - bound))} at its top level")
            return False
        self._found[MAIN_FILE] = definitions(text, names).encode()
        if isinstance(script, Path):
            place, module = _place_of(script.resolve())
            self._places.insert(0, place)
            if "." in module:  # run by `python -m`: what it imports is relative to its package
                self._found[MAIN_FILE] = f"from {module} import {', '.join(sorted(names))}\n".encode()
        return True

    def _lacks_main(self, names: set[str]) -> str:
        """Why a pickle whose classes were defined in a script is refused, and what to do."""
        listed, were = ", ".join(sorted(names)), "was" if len(names) == 1 else "were"
        reason = f"{self._sources.artefact} needs {listed}, which {were} defined in the script or notebook that made it"
        for place in self._sources.places:
            for path in sorted([*place.glob("*.py"), *place.glob("*.ipynb")]):
                try:
                    found = names <= set(bound_names(_parsed(_script(path), path.name)))
                except CannotAdd:
                    continue
                if found:
                    return f"{reason}; {path.name} defines the same: add --code {path}"
        return f"{reason}; add --code with that file (.py or .ipynb)"

    def _take_given(self, path: Path, wanted: set[str]) -> list[Name]:
        """Take a file or directory that was given, and return the module that it is."""
        if not path.exists():
            raise CannotAdd(f"{path}: no such file or directory")
        real = path.resolve()
        if real.is_dir():
            return self._take_directory(real, wanted)
        place, module = _place_of(real)
        if real.suffix != ".py":
            place = next((place for place in self._places if real.is_relative_to(place.resolve())), real.parent)
            self._found[real.relative_to(place.resolve()).as_posix()] = real
            return []
        self._places.insert(0, place)
        self._given.add(module.partition(".")[0])
        return [(module, "")]

    def _take_directory(self, directory: Path, wanted: set[str]) -> list[Name]:
        place, module = _place_of(directory)
        if not (directory / INIT).exists() and directory.name not in wanted and any(directory.rglob("*.py")):
            self._places.insert(0, directory)  # packages and modules lie in it
            self._given |= {inner.stem for inner in directory.iterdir()} & wanted
            return []
        self._places.insert(0, place)
        self._given.add(module.partition(".")[0])
        self._take_files(place, directory, max_bytes=None)
        return [(module, "")]

    def _take_files(self, place: Path, directory: Path, max_bytes: int | None) -> None:
        """Take all of a package, but for hidden and compiled files, and data beyond `max_bytes`. Raises CannotAdd."""
        for parent, directories, files in os.walk(directory):
            directories[:] = [name for name in directories if not name.startswith(".") and name != "__pycache__"]
            for name in files:
                file = Path(parent, name)
                if name.startswith(".") or name.endswith(COMPILED) or not file.is_file():
                    continue
                if not file.resolve().is_relative_to(place.resolve()):
                    raise CannotAdd(f"{file} is a link that leaves {place}")
                if name.endswith(".py") or max_bytes is None or file.stat().st_size <= max_bytes:
                    self._found[file.relative_to(place).as_posix()] = file
            if len(self._found) > MAX_FILES:
                return  # too many anyway

    def _follow(self, module: str, name: str) -> list[Name]:
        """Take a module if it is own code, and return what it imports."""
        top = module.partition(".")[0]
        for place in [*self._places, *_editable_places(top)]:
            files = _files_of(place, module)
            if files and (top in self._given or _is_own(files[-1], module, name)):
                break
        else:
            return []
        self._given.add(top)
        for file in files:
            self._found[file.relative_to(place).as_posix()] = file
        packages = [file for file in files if file.name == INIT]
        if packages:
            self._take_files(place, packages[0].parent, MAX_DATA_BYTES)
        return [
            wanted
            for file in files
            for wanted in self._imports(file.relative_to(place).as_posix(), ".".join(_parts(file.relative_to(place))))
        ]

    def _imports(self, path: str, module: str) -> list[Name]:
        """The modules, and names in them, that the file found at `path` imports. Raises CannotAdd."""
        found = self._found[path]
        content = found.read_bytes() if isinstance(found, Path) else found
        package = module if path.endswith(INIT) else module.rpartition(".")[0]
        return list(_imported(_parsed(content, path), package))


def _imported(tree: ast.AST, package: str) -> Iterator[Name]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield (module, "" if alias.name == "*" else alias.name)
                yield (f"{module}.{alias.name}", "")  # a module, or a name in one


def _files_of(place: Path, module: str) -> list[Path]:
    """The files that an import of a module executes, from the top; none if it does not lie below `place`."""
    files: list[Path] = []
    at = place
    for part in module.split("."):
        if (at / part / INIT).is_file():
            files.append(at / part / INIT)
        elif (at / f"{part}.py").is_file():
            return [*files, at / f"{part}.py"]
        elif not (at / part).is_dir():
            return files if files and files[-1].parent == at else []  # a name in a package, or no module at all
        at /= part
    return files


def _place_of(path: Path) -> tuple[Path, str]:
    """The directory that a module or package is imported from, and its name there."""
    place = path.parent
    while (place / INIT).is_file() and place.parent != place:
        place = place.parent
    return place, ".".join(_parts(path.relative_to(place)))


def _parts(path: Path) -> tuple[str, ...]:
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1:] == ("__init__",) else parts


def _script(path: Path) -> str:
    """The text of a script or notebook. Raises CannotAdd."""
    try:
        text = path.read_text("utf-8")
        return cells(text) if path.suffix == ".ipynb" else text
    except OSError as error:
        raise CannotAdd(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CannotAdd(f"{path} cannot be read: {error}") from error


def _parsed(source: str | bytes, label: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise CannotAdd(f"{label} is not Python: {error}") from error


def _is_own(file: Path, module: str, name: str) -> bool:
    """Return whether a module found in `file` is own code, and not one of Python or of an installed package.

    Of two modules of one name it is the one that defines `name`.
    """
    other = _elsewhere(module)
    if other is None:
        return True
    attribute = name.partition(".")[0]
    return bool(attribute) and _defines(file, attribute) > _defines(other, attribute)


def _elsewhere(module: str) -> Path | None:
    """The file of a module that Python, an installed package or this project has, as far as it goes; None for none."""
    top = module.partition(".")[0]
    if top in sys.builtin_module_names:
        return Path(top)
    entries = [entry for entry in sys.path if _is_installed(entry)] + ([str(HOME)] if top in OURS else [])
    spec = PathFinder.find_spec(top, entries)
    if spec is None or spec.origin is None:
        return None
    files = _files_of(Path(spec.origin).parents[1 if spec.submodule_search_locations else 0], module)
    return files[-1] if files else Path(spec.origin)


def _defines(file: Path, name: str) -> int:
    """Return 2 if a module binds a name, 1 if it may do so, 0 if it does not."""
    if file.suffix != ".py":
        return 1
    try:
        bound = set(bound_names(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return 0
    if name in bound or _files_of(file.parent, name):
        return 2
    return int("*" in bound or "__getattr__" in bound)


@functools.cache
def _standard_places() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def _is_installed(entry: str) -> bool:
    """Return whether an entry of `sys.path` holds Python's own modules or installed packages."""
    path = Path(entry or ".").resolve()
    return (
        "site-packages" in path.parts
        or "dist-packages" in path.parts
        or path in _standard_places()
        or path.name == "lib-dynload"
        or path.suffix == ".zip"
    )


def _import_places() -> list[Path]:
    """Where this process imports from, installed packages apart: the start directory, PYTHONPATH, editable packages."""
    return [Path(entry or ".").resolve() for entry in sys.path if not _is_installed(entry)]


def _editable_places(top: str) -> Iterator[Path]:
    """Where a package lies that is installed in editable mode by a finder of its own."""
    for finder in sys.meta_path:
        if finder.__class__.__module__.startswith("__editable__") or getattr(finder, "__module__", "").startswith(
            "__editable__"
        ):
            spec = finder.find_spec(top, None)
            if spec is not None and spec.origin is not None:
                yield Path(spec.origin).parents[1 if spec.submodule_search_locations else 0]
