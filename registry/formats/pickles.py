"""Pickles, of joblib and cloudpickle too: looked into without executing them, and loaded from memory."""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import structlog
from sklearn.exceptions import InconsistentVersionWarning

from registry.errors import CannotRead, one_line
from registry.formats.compression import TRUNCATED, open_content
from registry.formats.versions import catboost_version, xgboost_version
from registry.memory import limited_memory
from registry.store.code import CLOUDPICKLE, OwnCode, load_stream, plain

log = structlog.get_logger(__name__)

JOBLIB_ARRAY = "joblib.numpy_pickle:NumpyArrayWrapper"
SKIPPED_BYTES = 1 << 20
"""Bytes of an array that are read, and dropped, at a time."""

SUBIMPORT = f"{CLOUDPICKLE}:subimport"
"""What cloudpickle calls with the name of a module that a function needs."""

STATED = re.compile(rb"_sklearn_version[^0-9.]{1,16}?([0-9]+\.[0-9]+[0-9A-Za-z.+]{0,20})", re.DOTALL)
"""How a pickle states its version, for one that cannot be looked into otherwise."""

SURVEY_BYTES = 1 << 30
SURVEY_TIMES = 64
"""The memory for looking into a file: so much, and so many times its size. A dozen damaged bytes may ask for 32 GB."""

VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,40}", re.ASCII)

CLASS_FACTORIES = frozenset({"_make_skeleton_class", "_make_skeleton_enum", "new_class", "namedtuple"})
"""Functions whose result is a class, of which a pickle then makes instances."""


@dataclass
class Survey:
    """What a pickle says about itself: the classes and functions that it needs, and library versions.

    `complete` is False for a pickle that could be looked into only in part.
    """

    names: set[str] = field(default_factory=set)
    """Module and name of each class and function, such as "sklearn.svm._classes:SVC"."""
    versions: dict[str, str] = field(default_factory=dict)
    """The versions of libraries that the estimators in it were fitted with, by distribution, where it states them."""
    root: str = ""
    """The class of what it holds."""
    complete: bool = True


def survey_pickle(content: bytes) -> Survey:
    """Look into a pickle, compressed or not, without importing or calling anything. Raises CannotRead if it is cut."""
    survey = Survey()
    try:
        with limited_memory(SURVEY_BYTES + SURVEY_TIMES * len(content)):
            found = _Surveyor(open_content(content), survey).load()
        survey.root = type(found).name if isinstance(found, _Stand) else type(found).__name__
    except CannotRead:
        raise
    except EOFError as error:
        raise CannotRead(TRUNCATED) from error
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise CannotRead(TRUNCATED) from error
        survey.complete = False
    except MemoryError as error:
        raise CannotRead("asks for much more memory than a file of its size can need") from error
    except Exception:  # noqa: BLE001 - a pickle may do anything to what stands in for its classes; loading it decides
        survey.complete = False
    if not survey.complete and "scikit-learn" not in survey.versions:
        stated = STATED.search(open_content(content).read())
        if stated is not None:
            survey.versions["scikit-learn"] = stated_version(stated[1].decode())
    return survey


def load_pickle(path: Path, content: bytes, code: OwnCode | None = None) -> Any:
    """What a pickle holds, which is executed, with its own `code`; `path` is named in the log. Raises CannotRead."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = load_stream(open_content(content), code)
    except (CannotRead, MemoryError):
        raise
    except ImportError as error:
        raise CannotRead(f"needs a library that is not installed: {plain(one_line(error))}") from error
    except EOFError as error:
        raise CannotRead(f"does not load: {TRUNCATED.removeprefix('is ')}") from error
    except (Exception, SystemExit) as error:
        raise CannotRead(f"does not load: {type(error).__name__}: {plain(one_line(error))}") from error
    # another release of scikit-learn is refused, forced, or one of which nothing is to be feared
    others = [one.message for one in caught if not issubclass(one.category, InconsistentVersionWarning)]
    for message in dict.fromkeys(map(one_line, others)):
        log.warning("Model loaded with a warning", artefact=str(path), warning=message)
    return loaded


class _Stand:
    """Stands in for an object of a class that is not imported: takes everything and does nothing."""

    name = ""
    survey: Survey
    file: BinaryIO

    def __new__(cls, *arguments: Any, **_named: Any) -> Any:
        if cls.name == SUBIMPORT and arguments:
            cls.survey.names.add(f"{arguments[0]}:")
        return _stand_in(cls) if cls.name.rpartition(":")[2] in CLASS_FACTORIES else object.__new__(cls)

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        pass

    def __call__(self, *_arguments: Any, **_named: Any) -> Any:
        return self

    def __setstate__(self, state: Any) -> None:
        if self.name == JOBLIB_ARRAY:
            _skip_array(self.file, state, self.survey)
        elif isinstance(state, dict):
            self.survey.versions |= _versions_stated(self.name, state)

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _item: Any) -> None:
        pass

    add = extend = append


def _stand_in(base: type[_Stand]) -> type[_Stand]:
    return type("_StandIn", (base,), {"name": base.name.rpartition(":")[0] + ":"})


def _bytes_of(*arguments: Any) -> Any:
    """What `bytearray` and `_codecs.encode` are called for in a pickle: to make bytes of a constant."""
    given = arguments[0] if arguments else b""
    return given.encode("latin-1") if isinstance(given, str) else bytes(given) if isinstance(given, bytes) else b""


HARMLESS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): np.dtype,
    ("builtins", "bytearray"): _bytes_of,
    ("__builtin__", "bytearray"): _bytes_of,
    ("_codecs", "encode"): _bytes_of,
}
"""What is made while a pickle is looked into, because its size or its bytes matter."""


class _Surveyor(pickle.Unpickler):
    """Unpickles with stand-ins for all classes and functions, and notes which they are."""

    def __init__(self, file: BinaryIO, survey: Survey) -> None:
        self.source = _Exact(file)
        super().__init__(self.source)
        self.survey = survey
        self.stands: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in HARMLESS:
            return HARMLESS[module, name]
        full = f"{module}:{name}"
        if full not in self.stands:
            self.survey.names.add(full)
            members = {"name": full, "survey": self.survey, "file": self.source}
            self.stands[full] = type("_Stand", (_Stand,), members)
        return self.stands[full]

    def persistent_load(self, _key: Any) -> Any:
        self.survey.complete = False
        return None


class _Exact:
    """A file that cannot be peeked into: the unpickler then reads no further than it is, so arrays can be skipped."""

    def __init__(self, file: Any) -> None:
        self.read, self.readline, self.readinto = file.read, file.readline, file.readinto


def _skip_array(file: Any, state: dict[str, Any], survey: Survey) -> None:
    """Skip an array that joblib has written behind the wrapper with this state."""
    dtype = state["dtype"]
    if dtype.hasobject:
        _Surveyor(file, survey).load()
        return
    if state.get("numpy_array_alignment_bytes") is not None:
        file.read(file.read(1)[0])
    left = dtype.itemsize
    for length in state["shape"]:
        left *= length
    while left:
        found = len(file.read(min(left, SKIPPED_BYTES)))
        if not found:
            raise EOFError
        left -= found


def stated_version(stated: object) -> str:
    """A version that a file states, which may be shown; "unknown" for what is none."""
    return stated if isinstance(stated, str) and VERSION.fullmatch(stated) else "unknown"


def _versions_stated(name: str, state: dict[str, Any]) -> dict[str, str]:
    """The version of a library that the state of an object of a class states."""
    found = {}
    if "_sklearn_version" in state:
        found["scikit-learn"] = stated_version(state["_sklearn_version"])
    kept = [bytes(value) for value in state.values() if isinstance(value, bytes | bytearray)]
    for content in kept:
        if name.startswith("xgboost.core:"):
            found |= xgboost_version(content)
        elif name.startswith("catboost.core:"):
            found |= catboost_version(content)
    return found
