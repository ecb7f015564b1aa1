"""Files of skops: their types are named in JSON, and only those that skops or the user trusts are made.

What a user trusts is given when a model is added and kept in the manifest, which states the file's hash; the file
itself is never asked.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from registry.errors import CannotRead, one_line
from registry.formats.compression import check_size
from registry.formats.pickles import Survey, stated_version
from registry.store.code import OwnCode, plain

SCHEMA = "schema.json"
INSTALL = "is a skops file; to read it, run `pip install 'forkserve[skops]'`"


def survey_skops(content: bytes) -> Survey:
    """The classes and functions that a skops file names, and library versions. Raises CannotRead."""
    survey = Survey()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_size(sum(entry.file_size for entry in archive.infolist()), len(content))
            schema = json.loads(archive.read(SCHEMA))
        survey.root = _name(schema)
        for node in _nodes(schema):
            survey.names.add(_name(node))
            inner = node.get("content")
            stated = inner.get("_sklearn_version") if isinstance(inner, dict) else None
            if isinstance(stated, dict):
                survey.versions["scikit-learn"] = stated_version(json.loads(stated["content"]))
    except CannotRead:
        raise
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise CannotRead(f"is a damaged skops file: {one_line(error)}") from error
    survey.names.discard(":")
    return survey


def untrusted_types(content: bytes, trusted: Sequence[str]) -> list[str]:
    """The types in a skops file that neither skops nor the user trusts. Raises CannotRead."""
    try:
        from skops.io import get_untrusted_types

        return [name for name in get_untrusted_types(data=content) if name not in trusted]
    except ImportError as error:
        raise CannotRead(INSTALL) from error
    except MemoryError:
        raise
    except Exception as error:
        raise CannotRead(f"does not load: {type(error).__name__}: {one_line(error)}") from error


def check_trust(content: bytes, trusted: Sequence[str]) -> None:
    """Raise CannotRead, with what to say at the command line, if a skops file has types that are not trusted."""
    names = untrusted_types(content, trusted)
    if names:
        options = " ".join(f"--trust {one_line(name)}" for name in names)
        raise CannotRead(f"has types that skops does not trust; if you do, add it with {options}")


def load_skops(content: bytes, trusted: Sequence[str], code: OwnCode | None) -> Any:
    """What a skops file holds, made of trusted types alone. Raises CannotRead."""
    check_trust(content, trusted)
    from skops.io import loads

    try:
        with warnings.catch_warnings(), _importable(content, code):
            warnings.simplefilter("ignore")
            return loads(content, trusted=list(trusted))
    except MemoryError:
        raise
    except ImportError as error:
        raise CannotRead(f"needs a library that is not installed: {plain(one_line(error))}") from error
    except (Exception, SystemExit) as error:
        raise CannotRead(f"does not load: {type(error).__name__}: {plain(one_line(error))}") from error


@contextmanager
def _importable(content: bytes, code: OwnCode | None) -> Iterator[None]:
    """Lets skops, which imports modules by their names, find those of the version's own code, for a while."""
    modules = {name.partition(":")[0] for name in survey_skops(content).names} if code else set()
    own = {name: code.find(name, "") for name in modules if code and code.owns(name)}
    before = {name: sys.modules[name] for name in own if name in sys.modules}
    sys.modules.update(own)
    try:
        yield
    finally:
        for name in own:
            del sys.modules[name]
        sys.modules.update(before)


def _name(node: Any) -> str:
    return f"{node.get('__module__', '')}:{node.get('__class__', '')}"


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "__class__" in node:
                yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
