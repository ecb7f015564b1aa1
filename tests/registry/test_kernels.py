"""Kernels: compiled once, from a cache that may be broken, called by any thread with any rows."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from structlog.testing import capture_logs

from registry.kernels import KERNELS
from registry.kernels.kernel import Kernel
from registry.kernels.links import BINARY
from registry.rows.features import Rows
from tests.registry.parity import Pair, numbers, pair, target


def copy_of(kernel: Kernel) -> Kernel:
    """The same kernel, not compiled yet."""
    return Kernel(kernel.function, *kernel.signature.args)


def answers(kernel: Kernel) -> bool:
    out = np.empty((1, 3))
    kernel.load()(np.zeros((1, 1)), np.zeros(1), 1.0, True, out)  # noqa: FBT003 - compiled code takes positions
    return out.tolist() == [[0.5, 0.5, 1.0]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of numba's."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def forest() -> Pair:
    table = numbers()
    return pair(RandomForestClassifier(n_estimators=20, random_state=0), table, target(table, 2))


def test_compiled_kernel_is_kept_on_disk(cache: Path) -> None:
    copy_of(BINARY).load()
    assert list(cache.rglob("*.nbc"))


@pytest.mark.parametrize("content", [b"", b"not numba's", b"\x80\x04N."], ids=["empty", "text", "another pickle"])
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_broken_cache_costs_only_time(cache: Path, suffix: str, content: bytes) -> None:
    copy_of(BINARY).load()
    files = list(cache.rglob(f"*.{suffix}"))
    assert files
    for file in files:
        file.write_bytes(content)
    assert answers(copy_of(BINARY))


def test_no_place_for_a_cache_costs_only_time_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with capture_logs() as logs:
        assert answers(copy_of(BINARY))
    assert [(line["event"], line["kernel"]) for line in logs] == [("Kernel cache not used", "_binary")]


def test_full_disk_costs_only_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    assert answers(copy_of(BINARY))


def test_kernel_that_does_not_compile_says_so(cache: Path) -> None:
    broken = Kernel(lambda out: out.no_such_method(), *BINARY.signature.args[:1])
    with pytest.raises(numba.TypingError, match="no_such_method"):
        broken.load()


def test_every_kernel_is_compiled_for_one_signature_and_never_again() -> None:
    for kernel in KERNELS:
        compiled = kernel.load()
        assert kernel.load() is compiled
        with pytest.raises(TypeError, match="No matching definition"):
            compiled(*[None] * len(kernel.signature.args))


def test_warm_starts_no_thread() -> None:
    script = "import os; from registry.kernels import warm; warm(); print(len(os.listdir('/proc/self/task')))"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_threads_that_ask_at_once_get_their_own_answers(forest: Pair) -> None:
    batches = [np.random.default_rng(seed).normal(size=(50, 5)) for seed in range(40)]
    expected = [forest.reference(batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        assert [answer.tobytes() for answer in pool.map(forest.compiled, batches)] == expected


@pytest.mark.parametrize("form", ["read-only", "Fortran", "every second", "no rows"])
def test_rows_may_come_in_any_form(forest: Pair, form: str) -> None:
    rows: Rows = np.random.default_rng(0).normal(size=(8, 5))
    expected = forest.reference(rows)
    given = {
        "read-only": np.frombuffer(rows.tobytes()).reshape(8, 5),
        "Fortran": np.asfortranarray(rows),
        "every second": np.repeat(rows, 2, axis=0)[::2],
        "no rows": rows[:0],
    }[form]
    assert forest.compiled(given).tobytes() == expected[: len(given)].tobytes()


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 6), (1, 5, 1)])
def test_rows_of_another_shape_are_refused_before_a_kernel_reads_beyond_them(forest: Pair, shape: tuple[int]) -> None:
    with pytest.raises(ValueError, match="rows of shape"):
        forest.compiled(np.zeros(shape))
