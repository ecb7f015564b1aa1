"""The zygote as its worker sees it: forked while the worker had one thread, it forks children from then on.

Children share the worker's memory as it was at the start, by copy-on-write.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from serving.errors import ExecutorGone
from serving.process.child import isolate
from serving.process.forking import END, FORK, KILL, NOT_FORKED, ORDER, Nursery, fork


@dataclass(frozen=True, eq=False, slots=True)
class Child:
    """A forked process: the socket to talk with it, and a future that will say how it ended."""

    number: int
    socket: socket.socket
    ended: asyncio.Future[str]


class Zygote:
    """Forks, kills and watches children for the one event loop that asks first."""

    def __init__(self, work: Callable[[socket.socket], None]) -> None:
        """A child runs `work` on its end of the socket, and ends when it returns."""
        self._work = work
        self._pid = 0
        self._control: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._numbers = count()
        self._living: dict[int, asyncio.Future[str]] = {}

    def start(self) -> None:
        """Fork it. There may be no other thread in this process; its event loop, if there is one, is left alone."""
        self._control, control = socket.socketpair()
        self._control.settimeout(0)
        worker = os.getpid()
        with control:
            self._pid = fork(lambda: self._live(control, worker))

    def _live(self, control: socket.socket, worker: int) -> None:
        isolate(parent=worker, keep=control.fileno(), name="zygote")
        Nursery(control, self._work).serve()

    def is_gone(self) -> bool:
        """Whether it can be asked nothing more; it never ends by itself. Takes a microsecond."""
        if self._control is not None and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._let_go()
            self._pid = 0
        return self._control is None

    def stop(self) -> None:
        """End it and all its children, and wait for that."""
        self._let_go()
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0

    def fork(self) -> Child:
        """A new child; it can be spoken to at once. Raises ExecutorGone."""
        if self._control is None:
            raise ExecutorGone
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._control, self._hear_of_ends)
        ours, theirs = socket.socketpair()
        with theirs:
            ours.settimeout(0)
            child = Child(next(self._numbers), ours, self._loop.create_future())
            self._living[child.number] = child.ended
            self._order(FORK, child.number, theirs.fileno())
        return child

    def kill(self, child: Child) -> None:
        """End a child with SIGKILL, unless it has ended, and hang up."""
        child.socket.close()
        if self._living.pop(child.number, None) is not None:
            self._order(KILL, child.number)

    def _order(self, order: bytes, number: int, *descriptors: int) -> None:
        if self._control is None:
            return
        try:
            socket.send_fds(self._control, [ORDER.pack(order, number)], descriptors)
        except OSError:  # it is gone, or has not listened to hundreds of orders
            self._let_go()

    def _hear_of_ends(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(256 * END.size)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._let_go()
        for number, status in END.iter_unpack(data):
            ended = self._living.pop(number, None)
            if ended is not None:
                _tell(ended, _describe(status))

    def _let_go(self) -> None:
        """It ends by that, if it has not; its children with it."""
        if self._control is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._control)
            for ended in self._living.values():
                _tell(ended, "ended with its zygote")
        self._living.clear()
        self._control.close()
        self._control = None


def _tell(ended: asyncio.Future[str], how: str) -> None:
    if not ended.done():  # the call that waited for it may have been cancelled just now
        ended.set_result(how)


def _describe(status: int) -> str:
    """A wait status in words."""
    if status == NOT_FORKED:
        return "could not be forked"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    if -code == signal.SIGKILL:
        return "was killed, perhaps because memory ran out"
    return f"was ended by signal {-code}, {signal.strsignal(-code)}"
