"""What is taken from a script or a notebook: definitions and what they use, not the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.errors import CannotAdd
from registry.store import sources
from registry.store.definitions import cells, definitions
from registry.store.sources import Sources, collect_code

DECORATED = """try:
    import c as deco
except ImportError:
    deco = None
@deco
class Wanted(Base):
    def f(self, n=N): pass
"""

SCRIPTS: dict[str, tuple[str, str]] = {
    "functions and constants that it uses": (
        "K = 2\nUNUSED = 3\ndef f(x):\n    return x * K\nclass Wanted:\n    def predict(self, X): return f(X)\n",
        "K = 2\n\ndef f(x):\n    return x * K\nclass Wanted:\n    def predict(self, X): return f(X)\n",
    ),
    "names of arguments and variables are its own": (
        "X = load()\ny = X.y\nclass Wanted:\n    def fit(self, X, y=None):\n        table = X\n        return table\n",
        "\n\nclass Wanted:\n    def fit(self, X, y=None):\n        table = X\n        return table\n",
    ),
    "changes of what it uses": (
        "D = {}\nD['a'] = 1\nD.update(b=2)\nfill(D)\nE = {}\nprint(E)\nclass Wanted:\n    d = D\nWanted.x = 1\n",
        "D = {}\nD['a'] = 1\nD.update(b=2)\nfill(D)\n\n\nclass Wanted:\n    d = D\nWanted.x = 1\n",
    ),
    "what is done with it is left out": (
        "import joblib\nclass Wanted: pass\nmodel = Wanted()\nmodel.fit()\njoblib.dump(model, 'x')\ntrain(Wanted)\n",
        "\nclass Wanted: pass\n",
    ),
    "decorators, bases, defaults and conditions": (
        f"from a import Base\nfrom b import other\nN = 1\n{DECORATED}",
        f"from a import Base\n\nN = 1\n{DECORATED}",
    ),
    "imports of all names, and of the future": (
        "from __future__ import annotations\nfrom a import *\nimport b\nclass Wanted: pass\n",
        "from __future__ import annotations\nfrom a import *\n\nclass Wanted: pass\n",
    ),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_definitions_are_taken_with_what_they_need(case: str) -> None:
    script, expected = SCRIPTS[case]
    assert definitions(script, {"Wanted"}) == expected


def test_notebook_is_read_without_text_and_magic() -> None:
    found = [
        {"cell_type": "markdown", "source": "# x"},
        {"cell_type": "code", "source": ["%time\n", "a = 1\n", "!ls\n"]},
        {"cell_type": "code", "source": "no Python"},
    ]
    assert cells(json.dumps({"cells": found})) == "\na = 1\n\n"
    with pytest.raises(ValueError, match="it has no cells"):
        cells("{}")


def collect(root: Path, *given: str, names: tuple[str, ...] = ("mine.scaler:Scaler",)) -> dict[str, bytes]:
    return collect_code(names, Sources(tuple(root / path for path in given), (root,)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a package that has data, hidden and compiled files."""
    files = {
        "mine/__init__.py": "",
        "mine/scaler.py": "class Scaler: pass",
        "mine/words.txt": "a",
        "mine/.secret": "",
        "mine/fast.so": "",
        "mine/__pycache__/scaler.pyc": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_package_is_taken_with_its_data_up_to_a_size(root: Path) -> None:
    small = {"mine/__init__.py", "mine/scaler.py", "mine/words.txt"}
    (root / "mine/large.csv").write_bytes(b"x" * (1 << 20) + b"x")
    assert set(collect(root)) == small
    assert set(collect(root, "mine")) == small | {"mine/large.csv"}


def test_code_that_is_too_much_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "mine/large.csv").write_bytes(b"x" * 100)
    monkeypatch.setattr(sources, "MAX_BYTES", 50)
    with pytest.raises(CannotAdd, match=r"has 4 files of 0 MB, but at most .* the largest is mine/large.csv"):
        collect(root)


def test_what_cannot_be_taken_is_named(root: Path) -> None:
    with pytest.raises(CannotAdd, match="gone: no such file or directory"):
        collect(root, "gone")
    (root / "mine/link.txt").symlink_to("/etc/hostname")
    with pytest.raises(CannotAdd, match=r"link.txt is a link that leaves"):
        collect(root)
    (root / "mine/link.txt").unlink()
    (root / "mine/scaler.py").write_text("class Scaler(:")
    with pytest.raises(CannotAdd, match=r"scaler.py is not Python"):
        collect(root)


def test_what_is_installed_or_ours_is_not_taken(root: Path) -> None:
    for name in ("sklearn", "registry"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text("x = 1")
    (root / "json.py").write_text("x = 1")
    names = ("sklearn.svm._classes:SVC", "registry.model:LoadedModel", "json:dumps", "tests.cases:anything")
    assert collect(root, names=names) == {}
    assert set(collect(root, names=("json:x",))) == {"json.py"}
