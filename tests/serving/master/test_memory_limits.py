"""Limits of cgroups, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.master.memory import find_cgroup

MB = 1024 * 1024


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def write(path: Path, **files: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)


def test_version_2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/platform/service/app\n")
    write(tmp_path / "platform", memory__max="max\n")
    write(tmp_path / "platform/service", memory__max=f"{512 * MB}\n", memory__stat="anon 100\nfile 9999\nshmem 20\n")
    write(tmp_path / "platform/service/app", memory__max=f"{2048 * MB}\n")
    found = find_cgroup(own, tmp_path)
    assert found is not None
    assert (found.limit, found.used(), found.path.name) == (512 * MB, 120, "service")


def test_version_1_counts_resident_memory_of_the_memory_controller(tmp_path: Path, own: Path) -> None:
    own.write_text("7:cpu,cpuacct:/x\n4:memory:/box\n")
    write(
        tmp_path / "memory/box",
        memory__limit_in_bytes=f"{512 * MB}\n",
        memory__stat="cache 9\nrss 1\ntotal_cache 9999\ntotal_rss 300\ntotal_shmem 4\n",
    )
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712\n")
    found = find_cgroup(own, tmp_path)
    assert found is not None
    assert (found.limit, found.used()) == (512 * MB, 304)


def test_a_container_that_sees_itself_as_the_top_has_the_limit_of_the_top(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/docker/0123456789abcdef\n")
    write(tmp_path, memory__max=f"{64 * MB}\n", memory__stat="anon 1\n")
    found = find_cgroup(own, tmp_path)
    assert found is not None
    assert found.limit == 64 * MB


@pytest.mark.parametrize("content", ["", "0::/\n", "4:memory:/\n", "not a line\n"])
def test_no_limit_is_none(tmp_path: Path, own: Path, content: str) -> None:
    own.write_text(content)
    write(tmp_path, memory__max="max\n")
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712\n")
    assert find_cgroup(own, tmp_path) is None


def test_a_system_without_cgroups_has_no_limit(tmp_path: Path) -> None:
    assert find_cgroup(tmp_path / "missing", tmp_path) is None
