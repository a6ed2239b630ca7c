"""Preparation of vLLM's processes: they end with the run, return free memory, and report their first error."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import sys
import threading
import time

from caption_assets.errors import causes
from caption_assets.workers.parent_death import set_parent_death_signal

OWNER = "_CAPTION_ASSETS_ENGINE_OWNER"
"""Variable that holds the process id of the run. Where it is not set, vLLM is somebody else's and is left alone."""
CAUSE = "_CAPTION_ASSETS_ENGINE_CAUSE"
"""Variable that holds the path of the file for the first error of the engine's processes."""
PLUGIN = "caption_assets_vllm_plugin"
"""Name of the entry point, for vLLM's list of allowed plug-ins."""
TRIM_SECONDS = 5.0
"""Between two returns of free memory to the system, each of which takes 20 to 120 ms."""


def prepare() -> None:
    """What vLLM calls in each process it starts, as a plug-in (see the entry points in ``pyproject.toml``).

    Without the first half a SIGKILL of the run leaves the engine's processes, and the GPU memory they hold, behind.
    Without the second the CPU engine grows for hours: what it uses stays at 0.8 GB, but videos that the cache holds for
    a while and the steps' intermediate values lie mixed in the heap, and glibc keeps the holes (1.0 GB of them after
    800 windows, and growing; a fixed threshold for separate mappings helped less and cost a third of the speed).
    """
    owner = os.environ.get(OWNER)
    parent = multiprocessing.parent_process()
    if owner is not None and owner != str(os.getpid()) and parent is not None and parent.pid is not None:
        set_parent_death_signal(parent.pid)
        if path := os.environ.get(CAUSE):
            logging.getLogger("vllm").addHandler(_FirstError(path))
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # musl has none
            threading.Thread(target=_trim, args=(libc,), name="heap trimmer", daemon=True).start()


class _FirstError(logging.Handler):
    """Writes the first exception that vLLM logs to a file, unless another process has written one.

    vLLM tells its parent process no more than that the engine failed. What went wrong is in the process's log alone.
    """

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            try:
                with open(self._path, "x", encoding="utf-8") as file:
                    file.write(causes(record.exc_info[1]))
            except OSError:  # there is one already, or the folder is gone with the run
                pass


def _trim(libc: ctypes.CDLL) -> None:
    while True:
        time.sleep(TRIM_SECONDS)
        libc.malloc_trim(0)
