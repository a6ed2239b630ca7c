"""Makes processes die with the run that started them, also when it is killed outright."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Linux: prctl(2)."""


def set_parent_death_signal(parent: int) -> None:
    """Have the kernel kill this process when its parent, of that process id, ends. Elsewhere than on Linux: nothing.

    Raises:
        OSError: if the kernel refuses.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused a parent-death signal")
    if os.getppid() != parent:  # it died before the request
        os.kill(os.getpid(), signal.SIGKILL)
