"""The own code of a version: modules made from verified bytes, which nothing but this version can import.

Context: a pickle names the modules of its classes, and two versions may bring different modules of one name, or modules
named like ours. Decision: each loaded version has a package of a name that occurs once, `forkserve_code_3`, and its
modules live below that. Code of the version gets an `__import__` of its own, which finds `helpers` as
`forkserve_code_3.helpers`, at import and at any later time; all other imports are as they were. Consequence: such code
sees that longer name as its `__name__`, and is in `sys.modules` under no other.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.readers
import importlib.resources
import importlib.util
import io
import itertools
import pickle
import pkgutil  # noqa: F401 - a stand-in is made of it
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from joblib.numpy_pickle import NumpyPickler, NumpyUnpickler
from joblib.numpy_pickle_utils import _write_fileobject as compressed

CODE = "code"
"""The directory of a version that holds its own code."""

PREFIX = "forkserve_code_"
MAIN = "__main__"
"""The module of what was defined in the script or notebook that made an artefact."""

PRIVATE = re.compile(rf"\b{PREFIX}[0-9]+\.")

CLOUDPICKLE = "cloudpickle.cloudpickle"
COMPRESSION = 3

MAX_BYTES = 64 << 20
"""All files of one version's code together."""

MAX_FILES = 2000

TAKES_A_MODULE_NAME = {
    "importlib": ("import_module",),
    "importlib.resources": ("files", "open_binary", "open_text", "path", "read_binary", "read_text"),
    "importlib.util": ("find_spec",),
    "pkgutil": ("get_data",),
}
"""Functions of the standard library that import a module whose name is a string, past `__import__`."""

_numbers = itertools.count(1)


class OwnCode(MetaPathFinder):
    """The modules of one version, importable below `root` until they are forgotten.

    `files` are the verified bytes by path below `directory`; nothing else there is ever executed. Data files are read
    from the directory by the code itself. `elsewhere` are paths of files that lie in another place.
    """

    def __init__(
        self, directory: Path, files: Mapping[str, bytes], elsewhere: Mapping[str, Path] | None = None
    ) -> None:
        self.files = dict(files)
        self._elsewhere = elsewhere or {}
        self.root = f"{PREFIX}{next(_numbers)}"
        self._directory = directory
        self._tops = {PurePosixPath(path).parts[0].removesuffix(".py") for path in files if path.endswith(".py")}
        self._builtins = vars(builtins) | {"__import__": self._import}
        self._stand_ins: dict[str, ModuleType] = {}
        self._remove: Callable[[], object] | None = None
        sys.meta_path.insert(0, self)

    @classmethod
    def unpacked(cls, files: Mapping[str, bytes]) -> OwnCode:
        """Code that is no version's yet, in a temporary directory for as long as anything made with it lives."""
        scratch = tempfile.mkdtemp(prefix="forkserve-code-")
        write_files(Path(scratch), files)
        code = cls(Path(scratch), files)
        code._remove = weakref.finalize(code, shutil.rmtree, scratch, ignore_errors=True)
        return code

    def forget(self) -> None:
        """Let the modules go; what was made with them works on, but imports and pickles no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in [name for name in sys.modules if _is_below(name, self.root)]:
            del sys.modules[name]
        if self._remove is not None:
            self._remove()

    def inside(self, path: Any) -> str | None:
        """A path relative to the code's directory; None for one that is not below it."""
        try:
            return Path(path).relative_to(self._directory).as_posix()
        except (TypeError, ValueError):
            return None

    def owns(self, module: str) -> bool:
        """Return whether a module name belongs to this code."""
        return module.partition(".")[0] in self._tops

    def find(self, module: str, name: str) -> Any:
        """An object by its module and qualified name, imported if need be. Raises whatever the import raises."""
        found = importlib.import_module(f"{self.root}.{module}")
        return reduce(getattr, name.split("."), found) if name else found

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder; a name below `root` is found here or nowhere, whatever lies in the directory."""
        if not _is_below(fullname, self.root):
            return None
        inside = fullname.removeprefix(self.root).lstrip(".").replace(".", "/")
        for path_inside in (f"{inside}/__init__.py", f"{inside}.py"):
            if path_inside in self.files:
                path = self._elsewhere.get(path_inside, self._directory / path_inside)
                loader = _ModuleLoader(path, self.files[path_inside], self._builtins)
                return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)
        if inside and not any(file.startswith(f"{inside}/") for file in self.files):
            raise ModuleNotFoundError(f"No module named {inside.replace('/', '.')!r}", name=fullname)
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(self._directory / inside)]
        return spec

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:  # noqa: A002 - as `__import__` has them
        """`__import__` as the code of the version has it."""
        if level or not self.owns(name):
            module = builtins.__import__(name, globals, locals, fromlist, level)
            shown = name if fromlist else name.partition(".")[0]
            return self._stand_in(shown) if not level and shown in TAKES_A_MODULE_NAME else module
        if fromlist:
            return builtins.__import__(f"{self.root}.{name}", globals, locals, fromlist)
        importlib.import_module(f"{self.root}.{name}")
        return sys.modules[f"{self.root}.{name.partition('.')[0]}"]

    def _stand_in(self, name: str) -> ModuleType:
        """A module of the standard library whose functions find this code by the names of its modules."""
        if name not in self._stand_ins:
            module = sys.modules[name]
            stand_in = ModuleType(name)
            stand_in.__getattr__ = partial(getattr, module)  # type: ignore[method-assign]
            for function in TAKES_A_MODULE_NAME[name]:
                setattr(stand_in, function, self._resolving(getattr(module, function)))
            self._stand_ins[name] = stand_in
            for inner in TAKES_A_MODULE_NAME:
                parent, _, child = inner.rpartition(".")
                if parent == name:
                    setattr(stand_in, child, self._stand_in(inner))
        return self._stand_ins[name]

    def _resolving(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def resolve(value: Any) -> Any:
            return f"{self.root}.{value}" if isinstance(value, str) and self.owns(value) else value

        def resolving(*arguments: Any, **named: Any) -> Any:
            named = {
                name: resolve(value) if name in ("name", "package", "anchor") else value
                for name, value in named.items()
            }
            return function(*map(resolve, arguments[:1]), *arguments[1:], **named)

        return resolving

    # cloudpickle takes functions along by value, but what they import by name

    def subimport(self, name: str) -> ModuleType:
        """In the place of cloudpickle's function that imports a module."""
        return self._import(name, fromlist=("*",)) if self.owns(name) else importlib.import_module(name)

    def make_function(self, code: Any, globals: dict[str, Any], *rest: Any) -> FunctionType:  # noqa: A002 - as there
        """In the place of cloudpickle's function that makes a function."""
        globals["__builtins__"] = self._builtins
        return FunctionType(code, globals, *rest)


class _ModuleLoader(InspectLoader):
    """One module of a version's code."""

    def __init__(self, path: Path, content: bytes, names: dict[str, Any]) -> None:
        """`names` are its builtins."""
        self.path = str(path)
        self._content = content
        self._names = names

    def is_package(self, _fullname: str) -> bool:
        return self.path.endswith("/__init__.py")

    def get_source(self, _fullname: str) -> str:
        return importlib.util.decode_source(self._content)

    def get_data(self, path: str) -> bytes:
        """The bytes of a data file, for `pkgutil.get_data`. Raises OSError."""
        return Path(path).read_bytes()

    def get_resource_reader(self, _fullname: str) -> Any:
        """For `importlib.resources`."""
        return importlib.readers.FileReader(SimpleNamespace(path=self.path))  # type: ignore[arg-type]

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._names
        # the manifest states the hash of these bytes
        exec(compile(self._content, self.path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their path below a directory. Raises OSError."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _is_below(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def plain(text: str) -> str:
    """An error's text, with modules named as their author named them."""
    return PRIVATE.sub("", text)


def load_stream(stream: Any, code: OwnCode | None = None) -> Any:
    """The object in a pickle or joblib file that is not compressed, which is executed. Raises what its code raises."""
    return _Unpickler(stream, code).load()


def dump_pickle(value: Any) -> bytes:
    """A joblib file of a value. Raises what its `__reduce__` raises, and pickle's own errors."""
    content = io.BytesIO()
    with compressed(content, ("zlib", COMPRESSION)) as file:
        _Pickler(file).dump(value)
    return content.getvalue()


class _Unpickler(NumpyUnpickler):  # type: ignore[misc]
    def __init__(self, file: Any, code: OwnCode | None) -> None:
        super().__init__("", file, ensure_native_byte_order=True)
        self._code = code

    def find_class(self, module: str, name: str) -> Any:
        if self._code is not None:
            if self._code.owns(module):
                return self._code.find(module, name)
            if (module, name) == (CLOUDPICKLE, "subimport"):
                return self._code.subimport
            if (module, name) == (CLOUDPICKLE, "_make_function"):
                return self._code.make_function
        return super().find_class(module, name)


class _Pickler(NumpyPickler):  # type: ignore[misc]
    def save(self, value: Any) -> None:
        if type(value) is np.ndarray and value.dtype.hasobject:
            # joblib would leave the objects in it to a pickler of its own
            super(NumpyPickler, self).save(value)
        else:
            super().save(value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        """Name own code as its author did."""
        module = getattr(value, "__module__", None) or ""
        if not module.startswith(PREFIX):
            super().save_global(value, name)
            return
        name = name or value.__qualname__
        if (
            reduce(lambda found, part: getattr(found, part, None), name.split("."), sys.modules.get(module))
            is not value
        ):
            raise pickle.PicklingError(f"{plain(module)} has no {name}")
        self.save(plain(module))
        self.save(name)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(value)

    dispatch = NumpyPickler.dispatch | {FunctionType: save_global}
