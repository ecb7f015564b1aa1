"""What the zygote does all its life: fork children when its worker asks, kill them, say how they ended.

It has one thread for ever, so that it may fork at any time, which the worker with its threads may not. Only the
zygote, their parent, kills its children: a process id is not given to another process before the parent has looked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from serving.process.child import isolate

ORDER = struct.Struct("<cI")
"""From the worker: what to do, and the worker's number for the child. A FORK brings the child's socket along."""

FORK, KILL = b"F", b"K"

END = struct.Struct("<Ii")
"""To the worker: the number of a child that has ended, and its wait status."""

NOT_FORKED = -1
"""In place of a wait status."""


class Nursery:
    """The children of this process, which is the zygote."""

    def __init__(self, control: socket.socket, work: Callable[[socket.socket], None]) -> None:
        """`control` is connected to the worker; a child runs `work` on its own socket and ends."""
        self._control = control
        self._work = work
        self._pids: dict[int, int] = {}

    def serve(self) -> None:
        """Follow orders until the worker is gone; then nobody is left."""
        gc.freeze()  # nothing that is shared with the worker is ever looked at by a collector here
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
        """False when there will be no more."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, ORDER.size, 1)
        except ConnectionResetError:  # it hung up before it had read the last END
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
        zygote = os.getpid()
        try:
            pid = fork(lambda: self._live(own, zygote))
        except OSError:
            self._report(number, NOT_FORKED)
            return
        self._pids[number] = pid
        # Here as well as in the child: a KILL may be quicker than the child is
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)

    def _live(self, own: socket.socket, zygote: int) -> None:
        isolate(parent=zygote, keep=own.fileno(), name="executor")
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
    """Without a handler of Python's, SIGCHLD would not reach the wakeup descriptor."""


def fork(live: Callable[[], None]) -> int:
    """The id of a forked process that lives, then ends. To be called in a process with one thread. Raises OSError."""
    sys.stdout.flush()  # what is buffered would be written twice
    sys.stderr.flush()
    # A signal in the child before it has lost our handlers would be taken for one of ours
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(live)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _become(live: Callable[[], None]) -> NoReturn:
    """Live, then leave without the interpreter's own end, which would copy every shared page."""
    try:
        live()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - nothing may return into the code that has forked
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
