"""Makes processes die with the run that started them, also when it is killed outright."""

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


def die_with(parent: int) -> None:
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


def die_with_engine_owner() -> None:
    """What vLLM calls in each process it starts, as a plug-in (see the entry points in ``pyproject.toml``).

    Without it a SIGKILL of the run leaves the engine's processes, and the GPU memory they hold, behind.
    """
    owner = os.environ.get(OWNER)
    parent = multiprocessing.parent_process()
    if owner is not None and owner != str(os.getpid()) and parent is not None and parent.pid is not None:
        die_with(parent.pid)
