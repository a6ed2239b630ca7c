"""The vLLM plug-in: engine processes end with the run, return free memory, and report their first error."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import sys
import threading
import time

from caption_assets.captioning.library_logs import is_quiet, quiet_libraries
from caption_assets.errors import causes
from caption_assets.workers.parent_death import set_parent_death_signal

OWNER = "_CAPTION_ASSETS_ENGINE_OWNER"
"""Environment variable: process id of the run. Without it nothing is done: vLLM runs for another program."""
CAUSE = "_CAPTION_ASSETS_ENGINE_CAUSE"
"""Environment variable: path of the file for the first error of the engine's processes."""
PLUGIN = "caption_assets_vllm_plugin"
"""Name of the entry point, for vLLM's list of allowed plug-ins."""
TRIM_SECONDS = 5.0
"""Interval between calls of ``malloc_trim``, each of which takes 20 to 120 ms."""

if is_quiet():  # in a process of the engine, which imports vLLM next
    quiet_libraries()


def register() -> None:
    """Set up an engine process. vLLM calls this entry point in each process that it starts (see ``pyproject.toml``).

    Without the parent-death signal a SIGKILL of the run leaves the engine's processes running, with the GPU memory that
    they use.

    Without ``malloc_trim`` the CPU engine grows for hours. Its data stay at 0.8 GB, but cached videos and intermediate
    values lie mixed in the heap, and glibc keeps the gaps between them: 1.0 GB after 800 windows, and growing. A fixed
    threshold for separate mappings helped less and cost a third of the speed.
    """
    owner = os.environ.get(OWNER)
    parent = multiprocessing.parent_process()
    if owner is not None and owner != str(os.getpid()) and parent is not None and parent.pid is not None:
        set_parent_death_signal(parent.pid)
        quiet_libraries()
        if is_quiet():
            # multiprocessing writes the traceback of the error that ends a process, and ``_FirstError`` notes that.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        if path := os.environ.get(CAUSE):
            vllm = logging.getLogger("vllm")
            vllm.addHandler(_FirstError(path))
            vllm.setLevel(min(vllm.level, logging.ERROR))  # the console's handler has a level of its own
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # musl has none
            threading.Thread(target=_trim, args=(libc,), name="heap trimmer", daemon=True).start()


class _FirstError(logging.Handler):
    """Writes the first exception that vLLM logs to a file, unless another process has written one.

    vLLM reports to its parent process only that the engine failed. The cause is in the child process's log alone.
    """

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            try:
                with open(self._path, "x", encoding="utf-8") as file:
                    file.write(causes(record.exc_info[1]))
            except OSError:  # the file exists already, or the run has removed its folder
                pass


def _trim(libc: ctypes.CDLL) -> None:
    while True:
        time.sleep(TRIM_SECONDS)
        libc.malloc_trim(0)
