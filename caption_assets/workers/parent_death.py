"""The parent-death signal, with which child processes end when the run that started them ends or is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl(2)."""


def set_parent_death_signal(parent: int) -> None:
    """Let the kernel kill this process when its parent ends. Does nothing on systems other than Linux.

    Args:
        parent: process id of the parent.

    Raises:
        OSError: if the kernel refuses.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused a parent-death signal")
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), signal.SIGKILL)
