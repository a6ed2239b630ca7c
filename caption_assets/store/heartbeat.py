"""The heartbeat of a run: an object that the run's process rewrites as long as it is running.

A run started from the command line has no launcher that monitors its process. The heartbeat shows that the process is
running, whatever started it, in all phases of the run, on any machine.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType

from caption_assets.store.root import Root

FOLDER = "_runs"
"""Folder of the heartbeats below the root; each run in progress has one, named by the run's id."""
RENEWALS = 3
"""Number of renewals in the lifetime of a heartbeat: two may fail before it expires."""
POLL_SECONDS = 10.0
"""Interval of the checks whether the run was ended from outside, in seconds; that of Dagster's cancellation thread."""
START_SECONDS = 10.0
"""Maximum time that a run waits for its first heartbeat, in seconds. A run that is killed earlier has none."""
INTERRUPT_SECONDS = 30.0
"""Interval of the interrupts of a run that was ended from outside and continues, in seconds."""
END_SECONDS = 10.0
"""Maximum time that a run waits at its end for a store that does not respond, in seconds."""


@dataclass(frozen=True, slots=True)
class HeartbeatRecord:
    """The content of a heartbeat."""

    process: str
    """Host and process id, for messages."""
    seconds: float
    """Lifetime without renewal, in seconds."""


class Heartbeat:
    """A run's heartbeat. A thread renews it within the block; the end of the block removes it.

    Args:
        open_root: opens the root. Called in the thread, because a store may respond slowly.
        run_id: the run's id.
        seconds: lifetime of the heartbeat without renewal.
        has_ended: returns whether the run was ended from outside.
        interrupt: called if it was, and repeatedly while the block continues.
        on_error: called with the first of consecutive errors; the thread retries.
    """

    def __init__(
        self,
        open_root: Callable[[], Root],
        run_id: str,
        seconds: float,
        *,
        has_ended: Callable[[], bool],
        interrupt: Callable[[], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._open_root = open_root
        self._root: Root | None = None
        self._run_id = run_id
        self._record = json.dumps(
            asdict(HeartbeatRecord(f"{socket.gethostname()}, process {os.getpid()}", seconds))
        ).encode()
        self._interval = seconds / RENEWALS
        self._has_ended = has_ended
        self._interrupt = interrupt
        self._on_error = on_error
        self._has_failed = False
        self._first_tried = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        self._first_tried.wait(START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        renewed = self._renew()
        self._first_tried.set()
        while not self._ended.wait(min(self._interval, POLL_SECONDS)):
            if self._try(self._has_ended):
                self._interrupt_repeatedly()
                break
            if time.monotonic() - renewed >= self._interval - POLL_SECONDS / 2:
                renewed = self._renew()
        if self._root:
            self._try(partial(remove_heartbeat, self._root, self._run_id))

    def _interrupt_repeatedly(self) -> None:
        """Interrupt the run until it ends: an exception that a signal handler raises can be lost in a finalizer."""
        self._interrupt()
        while not self._ended.wait(INTERRUPT_SECONDS):
            self._interrupt()

    def _renew(self) -> float:
        """Try to write the heartbeat, and return the time of the attempt."""
        begun = time.monotonic()
        self._try(self._write)
        return begun

    def _write(self) -> None:
        self._root = self._root or self._open_root()
        self._root.write(_path(self._run_id), self._record)
        self._has_failed = False

    def _try(self, action: Callable[[], object]) -> object:
        """The result of ``action``; None if it fails, as errors of store and database may be temporary."""
        try:
            return action()
        except Exception as error:
            if not self._has_failed and self._root:  # each step reports a root that cannot be opened
                self._on_error(str(error))
            self._has_failed = True
            return None


def list_heartbeats(root: Root) -> dict[str, str]:
    """The modification time of each heartbeat by run id, as text that differs after each renewal.

    Raises:
        StoreError: if the root cannot be listed.
    """
    try:
        # The modification time is LastModified in s3fs and mtime in local file systems.
        return {
            entry["name"].rpartition("/")[2]: str(entry.get("LastModified") or entry["mtime"])
            for entry in root.entries(FOLDER)
            if entry["type"] == "file"
        }
    except FileNotFoundError:
        return {}


def read_heartbeat(root: Root, run_id: str) -> HeartbeatRecord | None:
    """The content of a heartbeat; None if there is none, or it is damaged.

    Raises:
        StoreError: if it cannot be read.
    """
    try:
        found = json.loads(root.read(_path(run_id)))
        return HeartbeatRecord(str(found["process"]), float(found["seconds"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def remove_heartbeat(root: Root, run_id: str) -> None:
    """Remove a heartbeat, if it exists.

    Raises:
        StoreError: if it cannot be removed.
    """
    root.remove(_path(run_id))


def _path(run_id: str) -> str:
    return f"{FOLDER}/{run_id}"
