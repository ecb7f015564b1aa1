"""Named numbers in memory that forked processes share."""

from __future__ import annotations

import os

import pytest

from serving.shared.numbers import Number, Numbers, shared_floats, shared_integers

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Doors(Numbers):
    """Two numbers."""

    opened = Number()
    closed = Number()


class Windows(Numbers):
    """One number."""

    broken = Number()


def test_each_name_has_a_number_of_its_own_which_is_zero_at_first() -> None:
    doors, others, windows = Doors(), Doors(), Windows()
    doors.opened += 2
    doors.closed = 2**64 - 1
    assert (doors.opened, doors.closed) == (2, 2**64 - 1)
    assert (others.opened, others.closed, windows.broken) == (0, 0, 0)


def test_a_child_writes_what_its_parent_reads() -> None:
    doors, integers, floats = Doors(), shared_integers(3), shared_floats(3)
    pid = os.fork()
    if pid == 0:
        doors.closed, integers[2], floats[1] = 7, 8, 0.5
        os._exit(0)
    os.waitpid(pid, 0)
    assert (doors.closed, integers.tolist(), floats.tolist()) == (7, [0, 0, 8], [0.0, 0.5, 0.0])
