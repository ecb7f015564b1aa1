"""A process that forks others for its worker: forked while the worker had one thread, it may fork at any time.

Children share the worker's memory as it was at the start, by copy-on-write. Only the zygote, their parent, kills them:
the kernel does not reuse a process id before its parent has waited for it. `Zygote` is the worker's end, `Nursery` the
forked one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from serving.errors import ExecutorGone
from serving.process.child import describe_exit, fork_isolated

ORDER = struct.Struct("<cI")
"""From the worker: what to do, and the worker's number for the child. A FORK brings the child's socket along."""

FORK, KILL = b"F", b"K"

END = struct.Struct("<Ii")
"""To the worker: the number of a child that has ended, and its wait status."""

NOT_FORKED = -1
"""In place of a wait status."""


@dataclass(frozen=True, eq=False, slots=True)
class Child:
    """A forked process: the socket to talk with it, and a future that says how it ended."""

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
        """Fork the zygote. This process may have no other thread; its event loop, if it has one, is not touched."""
        self._control, control = socket.socketpair()
        self._control.settimeout(0)
        with control:
            nursery = Nursery(control, self._work)
            self._pid = fork_isolated(nursery.serve, keep=control.fileno(), name="zygote")

    def is_gone(self) -> bool:
        """True if the zygote has ended, which it never does by itself. Takes a microsecond."""
        if self._control is not None and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._disconnect()
            self._pid = 0
        return self._control is None

    def stop(self) -> None:
        """End the zygote and all its children, and wait for that."""
        self._disconnect()
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0

    def fork(self) -> Child:
        """A new child, which can be written to at once. Raises ExecutorGone."""
        if self._control is None:
            raise ExecutorGone
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._control, self._read_ends)
        ours, theirs = socket.socketpair()
        with theirs:
            ours.settimeout(0)
            child = Child(next(self._numbers), ours, self._loop.create_future())
            self._living[child.number] = child.ended
            self._order(FORK, child.number, theirs.fileno())
        return child

    def kill(self, child: Child) -> None:
        """Close the connection to a child and, unless it has ended, kill it with SIGKILL."""
        child.socket.close()
        if self._living.pop(child.number, None) is not None:
            self._order(KILL, child.number)

    def _order(self, order: bytes, number: int, *descriptors: int) -> None:
        if self._control is None:
            return
        try:
            socket.send_fds(self._control, [ORDER.pack(order, number)], descriptors)
        except OSError:  # it is gone, or has not read hundreds of orders
            self._disconnect()

    def _read_ends(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(256 * END.size)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect()
        for number, status in END.iter_unpack(data):
            ended = self._living.pop(number, None)
            if ended is not None:
                _resolve(ended, "could not be forked" if status == NOT_FORKED else describe_exit(status))

    def _disconnect(self) -> None:
        """Hang up, which ends the zygote and its children."""
        if self._control is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._control)
            for ended in self._living.values():
                _resolve(ended, "ended with its zygote")
        self._living.clear()
        self._control.close()
        self._control = None


def _resolve(ended: asyncio.Future[str], how: str) -> None:
    if not ended.done():  # the call that waited for it may have been cancelled just now
        ended.set_result(how)


class Nursery:
    """The children of this process, which is the zygote."""

    def __init__(self, control: socket.socket, work: Callable[[socket.socket], None]) -> None:
        """`control` is connected to the worker; a child runs `work` on its own socket and ends."""
        self._control = control
        self._work = work
        self._pids: dict[int, int] = {}

    def serve(self) -> None:
        """Follow orders until the worker is gone, then kill all children."""
        gc.freeze()  # a collection here would write to every page that is shared with the worker
        gc.disable()
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(woken, select.POLLIN)
        serving = True
        while serving:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if woken in ready:
                os.read(woken, 4096)
                self._reap()
            if self._control.fileno() in ready:
                serving = self._follow_order()
        for number, pid in self._pids.items():
            self._kill(number)
            os.waitpid(pid, 0)

    def _follow_order(self) -> bool:
        """Read one order and carry it out; False when the worker is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, ORDER.size, 1)
        except ConnectionResetError:  # the worker hung up before it had read the last END
            return False
        if not data:
            return False
        order, number = ORDER.unpack(data)
        if order == FORK:
            with socket.socket(fileno=descriptors[0]) as own:
                own.set_inheritable(False)
                self._fork(number, own)
        else:
            self._kill(number)
        return True

    def _fork(self, number: int, own: socket.socket) -> None:
        try:
            pid = fork_isolated(lambda: self._live(own), keep=own.fileno(), name="executor")
        except OSError:
            self._report(number, NOT_FORKED)
            return
        self._pids[number] = pid
        # Here as well as in the child: a KILL may be quicker than the child is
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)

    def _live(self, own: socket.socket) -> None:
        gc.enable()
        self._work(own)

    def _kill(self, number: int) -> None:
        pid = self._pids.get(number)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        for number, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[number]
                self._report(number, status)

    def _report(self, number: int, status: int) -> None:
        with contextlib.suppress(OSError):  # the worker is gone, which is noticed next
            self._control.sendall(END.pack(number, status))


def _wake(*_: object) -> None:
    """Handle SIGCHLD: without a handler in Python, the signal would not reach the wakeup descriptor."""
