"""The build of an engine in its own thread: it does not block the event loop, and it can be canceled."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import active_children, resource_tracker
from threading import Event, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")

CANCEL_SECONDS = 8.0
"""Maximum wait for a canceled build: the import of vLLM takes some 10 s and cannot be interrupted."""
POLL_SECONDS = 0.1
"""Interval between searches for processes that a canceled build has started."""
REAP_SECONDS = 10.0
"""Maximum wait for killed processes to exit: the kernel frees a large model's memory first."""
NO_LEAK_WARNING = "ignore:resource_tracker:UserWarning"
"""Python's option that silences the warnings of multiprocessing's resource tracker."""
MAIN_MODULE_LOCATION = ("__spec__", "__file__")
"""Attributes by which multiprocessing finds the main module."""
ENGINE_MAIN = "caption_assets.captioning.vllm_plugin"
"""Main module of the engine's processes. They import it, and so this package's import hook, before vLLM."""


class BuildCancelled(Exception):
    """The build was canceled."""


class Build(Generic[T]):
    """Builds an object that runs in child processes.

    The thread stays alive until ``end``: the kernel terminates the processes with the thread that started them.

    Args:
        make: builds the object. Between its steps it calls its argument, which raises after a cancellation.
    """

    def __init__(self, make: Callable[[Callable[[], None]], T]) -> None:
        self._make = make
        self._outcome: Future[T] = Future()
        self._outcome.set_running_or_notify_cancel()  # a canceled task must not cancel the thread's future
        self._is_cancelled = False
        self._finished, self._released = Event(), Event()
        self._before: set[int | None] = set()
        self._processes: set[Any] = set()
        self._thread = Thread(target=self._work, name="engine build", daemon=True)

    async def result(self) -> T:
        """Start the build and wait for it. If the task is canceled, the processes that were started are killed.

        Raises:
            Exception: any exception of ``make``.
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
            del self._outcome  # only the caller keeps a reference to the object

    def end(self) -> None:
        """Kill the processes and wait until they have exited."""
        _kill(self._processes)
        self._released.set()

    def _work(self) -> None:
        outcome = self._outcome
        try:
            _start_resource_tracker()
            self._before = {child.pid for child in active_children()}
            outcome.set_result(self._built())
        except BaseException as error:
            outcome.set_exception(error)
        del outcome
        self._finished.set()
        self._released.wait()

    def _built(self) -> T:
        built = [self._make(self._check)]  # cleared below: vLLM keeps tracebacks, and they refer to this frame
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
        """The running processes that the build has started, with their descendants."""
        import psutil  # imported here: a slim installation has neither vLLM nor psutil

        started = set()
        for child in active_children():  # decoders start meanwhile too, but not through multiprocessing
            if child.pid not in self._before:
                with suppress(psutil.NoSuchProcess):
                    process = psutil.Process(child.pid)
                    started |= {process, *process.children(recursive=True)}
        return started


def _start_resource_tracker() -> None:
    """Start multiprocessing's tracker here, so that it outlives the engine.

    It removes the semaphores that a killed engine leaves behind, and would warn about each at the end of the program.
    """
    sys.warnoptions.append(NO_LEAK_WARNING)  # the tracker inherits these options
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(NO_LEAK_WARNING)


def _kill(processes: set[Any]) -> None:
    """Kill processes and wait until they have exited."""
    if not processes:
        return
    import psutil

    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=REAP_SECONDS)


@contextmanager
def main_module_replaced() -> Iterator[None]:
    """Within the block, processes that multiprocessing spawns import ``ENGINE_MAIN`` and not the caller's main module.

    The import of the caller's would run a script without a main guard again in each process, and it fails for a script
    from stdin. These processes must not need anything that the main module defines.
    """
    attributes = sys.modules["__main__"].__dict__
    replaced = {name: attributes[name] for name in MAIN_MODULE_LOCATION if name in attributes}
    attributes.pop("__file__", None)
    attributes["__spec__"] = find_spec(ENGINE_MAIN)
    try:
        yield
    finally:
        attributes.update(replaced)
