"""Worker processes for what files from strangers may break: limited in memory and time, replaced when they die."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessPool

from caption_assets.clips.container import UnreadableClip
from caption_assets.lifeline import die_with

P = ParamSpec("P")
T = TypeVar("T")
MOST_WORKERS = 8
"""By default: more would outrun any engine, for one decodes several windows a second."""

NICENESS = 10
"""Of workers, so that the process that feeds the engine, or a CPU engine itself, does not wait for them (nice(2))."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one job on a clip may take.

    Raises:
        ValueError: if a value is out of its range.
    """

    seconds: float = 120.0
    """Of wall time, and of CPU time."""
    memory_gb: float = 4.0
    """Of a worker's own memory, in GiB."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"the time limit is {self.seconds} s: give a number above 0")
        if self.memory_gb < 1:
            raise ValueError(f"the memory limit is {self.memory_gb} GiB: give at least 1, which the libraries take")


class Sandbox:
    """A pool of worker processes. One that dies or overstays costs its job alone, and is replaced.

    Args:
        limits: for each job.
        workers: how many; None for one a core that this process may use, up to 8.
    """

    def __init__(self, limits: SandboxLimits | None = None, workers: int | None = None) -> None:
        self._limits = limits or SandboxLimits()
        self.workers = workers or min(len(os.sched_getaffinity(0)), MOST_WORKERS)
        self._pool = ProcessPool(
            self.workers,
            initializer=_confine,
            initargs=(os.getpid(), int(self._limits.memory_gb * 2**30)),
            context=multiprocessing.get_context("spawn"),  # a fork would inherit threads' locks
        )

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker call a function of a module; ask ``result`` for what comes of it."""
        return self._pool.schedule(
            _limited, args=(self._limits.seconds, function, *args), kwargs=kwargs, timeout=self._limits.seconds
        )

    def result(self, job: Future[T]) -> T:
        """Wait for a submitted job.

        Raises:
            UnreadableClip: if the worker died, or reached a limit; and whatever the function raises.
        """
        with self._clear_errors():
            return job.result()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Submit and wait, without holding the event loop.

        Raises:
            UnreadableClip: if the worker died, or reached a limit; and whatever the function raises.
        """
        with self._clear_errors():
            return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        seconds, memory = self._limits.seconds, self._limits.memory_gb
        too_slow = UnreadableClip(
            "too_slow", f"the clip took longer than {seconds:g} s (CAPTION_CLIP_SECONDS): shorten it or raise the limit"
        )
        try:
            yield
        except TimeoutError:
            raise too_slow from None
        except MemoryError:
            raise UnreadableClip(
                "too_large",
                f"the clip needs more than {memory:g} GiB to be read (CAPTION_CLIP_MEMORY_GB): make it smaller or "
                "raise the limit",
            ) from None
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGXCPU:
                raise too_slow from None
            raise UnreadableClip(
                "decoder_died", f"the process that read the clip died of it (exit code {error.exitcode})"
            ) from None


def _confine(parent: int, memory: int) -> None:
    """Called first in each worker."""
    die_with(parent)
    os.nice(NICENESS)
    # Not the address space: libraries reserve far more of that than they use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limited(seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a worker, within ``seconds`` of CPU time."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, hard))
    return function(*args, **kwargs)
