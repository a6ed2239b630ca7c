"""The previews of a run on their way into the root: threads write them, so that no window waits for a store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from types import TracebackType

from caption_assets.captioning.window_job import WindowJob
from caption_assets.errors import as_project_error
from caption_assets.store.previews import Preview, write_preview
from caption_assets.store.root import Root

THREADS = 8
"""Number of concurrent writes: at 50 ms for each, 160 windows a second."""
WAIT_SECONDS = 60.0
"""Maximum wait for the previews of a shard."""


class PreviewStore:
    """Stores windows' previews. Failures cause one warning for each shard and do not affect captions.

    Args:
        root: the root.
        warn: receives warnings. It is called in other threads.
    """

    def __init__(self, root: Root, warn: Callable[[str], None]) -> None:
        self._root = root
        self._warn = warn
        self._threads = ThreadPoolExecutor(THREADS, "preview")
        self._pending: defaultdict[str, list[Future[None]]] = defaultdict(list)
        self._warned: set[str] = set()
        self._warning = Lock()

    def __enter__(self) -> PreviewStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A canceled run ends soon: rows matter more.
        self._threads.shutdown(wait=error is None, cancel_futures=error is not None)

    def store(self, job: WindowJob, preview: Preview) -> None:
        """Start to store a window's preview."""
        self._pending[job.shard].append(self._threads.submit(self._store, job, preview))

    def wait(self, shard: str) -> None:
        """Wait until the previews of a shard are stored, for at most ``WAIT_SECONDS``."""
        wait(self._pending.pop(shard, ()), WAIT_SECONDS)

    def _store(self, job: WindowJob, preview: Preview) -> None:
        try:
            write_preview(self._root, job.shard, job.window.window_id, preview)
        except Exception as error:
            with self._warning:
                if job.shard in self._warned:
                    return
                self._warned.add(job.shard)
            self._warn(
                f"{job.shard}: a preview could not be stored (window {job.window.window_id}); further failures in "
                f"this shard are not reported: {as_project_error(error)}"
            )
