"""Who holds a lease: a name that no process has had before or will have again."""

from __future__ import annotations

import os
import secrets
import socket
import time


def new_owner() -> str:
    """`host:pid:milliseconds:random`. A restart with the same pid, even on the same host, is another owner."""
    return f"{socket.gethostname()}:{os.getpid()}:{int(time.time() * 1000)}:{secrets.token_hex(8)}"
