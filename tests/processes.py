"""The vLLM processes below a run."""

from __future__ import annotations

from contextlib import suppress

import psutil

ENGINE = ["VLLM::EngineCore"]
"""Titles of the processes of one engine of the sample model."""


def engine_processes(run: int) -> dict[psutil.Process, str]:
    """The living engine processes below the process ``run``, with their titles."""
    with suppress(psutil.NoSuchProcess):
        titles = {child: _title(child) for child in psutil.Process(run).children(recursive=True)}
        return {child: title for child, title in titles.items() if title.startswith("VLLM::")}
    return {}


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; a container's first process may never collect it."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):  # it may have ended meanwhile
        return " ".join(process.cmdline()).strip()
    return ""
