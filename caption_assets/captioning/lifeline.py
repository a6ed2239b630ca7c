"""Makes the engine's processes die with the run, also when it is killed outright.

vLLM calls ``die_with_parent`` in each process it starts, as a plug-in (see the entry points in ``pyproject.toml``).
Without it a SIGKILL of the run leaves the engine's processes, and the GPU memory they hold, behind.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

OWNER = "_CAPTION_ASSETS_ENGINE_OWNER"
"""Variable that holds the process id of the run. Where it is not set, vLLM is somebody else's and is left alone."""
PLUGIN = "caption_assets_lifeline"
"""Name of the entry point, for vLLM's list of allowed plug-ins."""
PR_SET_PDEATHSIG = 1
"""Linux: prctl(2)."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; do nothing in the run itself or outside one."""
    owner = os.environ.get(OWNER)
    parent = multiprocessing.parent_process()
    if owner is None or owner == str(os.getpid()) or parent is None or sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused a parent-death signal")
    if os.getppid() != parent.pid:  # it died before the request
        os.kill(os.getpid(), signal.SIGKILL)
