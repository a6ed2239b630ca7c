"""The build of an engine, in a thread of its own: the event loop goes on meanwhile, and the build can be canceled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import active_children, resource_tracker
from threading import Event, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")

CANCEL_SECONDS = 8.0
"""Maximum wait for a build that is canceled; the import of vLLM, of some 10 s, cannot be ended."""
POLL_SECONDS = 0.1
"""Between two looks for processes that a canceled build has started."""
REAP_SECONDS = 10.0
"""Maximum wait for killed processes to be gone: the kernel frees a large model's memory first."""


class BuildCancelled(Exception):
    """The build is not wanted any more."""


class Build(Generic[T]):
    """Something that consists of child processes, as long as it exists.

    The thread that builds it stays until ``end``: the kernel ends the processes with the thread that started them.

    Args:
        make: builds it. Is given a function that it calls between its parts, and that raises after a cancellation.
    """

    def __init__(self, make: Callable[[Callable[[], None]], T]) -> None:
        self._make = make
        self._outcome: Future[T] = Future()
        self._outcome.set_running_or_notify_cancel()  # so that a canceled task leaves the thread one to resolve
        self._is_cancelled = False
        self._finished, self._released = Event(), Event()
        self._before: set[int | None] = set()
        self._processes: set[Any] = set()
        self._thread = Thread(target=self._work, name="engine build", daemon=True)

    async def result(self) -> T:
        """Build it. If the task is canceled meanwhile, the processes that have been started are ended.

        Raises:
            Exception: whatever ``make`` raises.
        """
        self._thread.start()
        try:
            return await asyncio.wrap_future(self._outcome)
        except asyncio.CancelledError:
            self._is_cancelled = True
            loop = asyncio.get_running_loop()
            deadline = loop.time() + CANCEL_SECONDS
            while not self._finished.is_set() and loop.time() < deadline:
                _kill(self._started())
                await asyncio.sleep(POLL_SECONDS)
            raise
        finally:
            del self._outcome  # what was built is the caller's alone

    def end(self) -> None:
        """End the processes, in whatever state they are, and wait until they are gone."""
        _kill(self._processes)
        self._released.set()

    def _work(self) -> None:
        """What the thread does."""
        outcome = self._outcome
        try:
            resource_tracker.ensure_running()  # for all processes of this one: an engine must not take it along
            self._before = {child.pid for child in active_children()}
            outcome.set_result(self._built())
        except BaseException as error:
            outcome.set_exception(error)
        del outcome
        self._finished.set()
        self._released.wait()

    def _built(self) -> T:
        built = [self._make(self._check)]  # in no variable: tracebacks that vLLM keeps hold this frame
        self._processes = self._started()
        try:
            self._check()
            return built[0]
        except BuildCancelled:
            _kill(self._processes)
            raise
        finally:
            built.clear()

    def _check(self) -> None:
        if self._is_cancelled:
            raise BuildCancelled

    def _started(self) -> set[Any]:
        """The processes that the build has started and that are still there, with all below them."""
        import psutil  # comes with vLLM; not above, for a slim installation has neither

        started = set()
        for child in active_children():  # the decoders, which come and go meanwhile, are none of multiprocessing's
            if child.pid not in self._before:
                with suppress(psutil.NoSuchProcess):
                    process = psutil.Process(child.pid)
                    started |= {process, *process.children(recursive=True)}
        return started


def _kill(processes: set[Any]) -> None:
    """Kill ``processes`` and wait until they are gone."""
    if not processes:
        return
    import psutil

    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=REAP_SECONDS)
