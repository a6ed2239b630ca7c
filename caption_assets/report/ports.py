"""Ports of this machine: which process listens on one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"
"""State of a listening socket in ``/proc/net/tcp`` (TCP_LISTEN in the kernel's include/net/tcp_states.h)."""


def occupant(port: int) -> str:
    """The process that listens on a port, for messages; "another program" if it belongs to another user."""
    process = listening_process(port)
    return f"process {process} ({_command(process)})" if process else "another program"


def listening_process(port: int) -> int | None:
    """Id of the process that listens on a port; None if there is none, or it belongs to another user."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for link in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):
            if os.readlink(link) in sockets:
                return int(link.parts[2])
    return None


def _inodes(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on a port; the columns are those of the kernel's proc_net_tcp.rst."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                    yield columns[9]


def _command(process: int) -> str:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "which has ended"
    return " ".join(words).strip()[:80]
