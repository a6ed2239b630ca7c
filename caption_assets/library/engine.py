"""The engine of the Python API: its weights come from the Hub or a folder through the cache, without a root."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from caption_assets.captioning.adapter import Adapter
from caption_assets.captioning.engine import start_engine
from caption_assets.captioning.library_logs import log_libraries
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.threads import in_thread
from caption_assets.models.cache import ensure_local, ensure_local_from_source
from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.download import DownloadStopped
from caption_assets.models.mirror import mirror_of, published_manifest
from caption_assets.models.weights import OnProgress, format_size
from caption_assets.settings import Settings
from caption_assets.store.root import Root

PROGRESS_SECONDS = 5.0
"""Interval between two messages about a download."""
SOCKETS = "VLLM_RPC_BASE_PATH"
"""vLLM's variable for the folder of its sockets. Its processes are killed, and leave them behind."""
logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_engine(
    settings: Settings, recipe: Recipe, mirror: Root | None = None
) -> AsyncIterator[EngineSupervisor]:
    """The engine of a recipe's model. It is stopped when the block ends.

    Args:
        settings: the settings.
        recipe: the recipe.
        mirror: a root whose mirrored weights have precedence over the Hub's.

    Raises:
        WeightsError: if the weights cannot be downloaded, or are not the published ones.
        EngineError: if the engine does not start.
    """
    if settings.log_level == "debug":
        log_libraries()
    model = await _local(settings, recipe.variant, mirror)
    adapter = None
    if recipe.lora is not None:
        folder = await _local(settings, recipe.lora, mirror)
        adapter = await in_thread(Adapter.read, recipe.lora, folder, recipe.variant, model)
        for warning in adapter.warnings:
            logger.warning(warning)
    config = settings.engine.of(recipe.variant)

    def on_crash(reason: str) -> None:
        logger.warning("%s; starting another engine for the windows in progress", reason)

    with tempfile.TemporaryDirectory(prefix="caption-assets-") as sockets:
        os.environ.setdefault(SOCKETS, sockets)
        try:
            logger.info("starting the engine for %s", recipe.variant.hub_id)
            started = time.monotonic()
            async with EngineSupervisor(
                lambda: start_engine(model, recipe, config, adapter),
                max_restarts=config.max_engine_restarts,
                on_crash=on_crash,
                settings=config.identity,
            ) as supervisor:
                logger.info("the engine is ready after %.0f s", time.monotonic() - started)
                yield supervisor
        finally:
            if os.environ.get(SOCKETS) == sockets:
                del os.environ[SOCKETS]


async def _local(settings: Settings, checkpoint: Checkpoint, mirror: Root | None) -> Path:
    """The local folder of a checkpoint, downloaded if necessary."""
    progress = _DownloadProgress(checkpoint.hub_id)
    try:
        return await in_thread(_download, settings, checkpoint, mirror, progress)
    except asyncio.CancelledError:
        progress.is_stopped = True
        raise


def _download(settings: Settings, checkpoint: Checkpoint, mirror: Root | None, on_progress: OnProgress) -> Path:
    weights = settings.weights
    if mirror is not None and published_manifest(mirror_of(mirror, checkpoint), checkpoint):
        return ensure_local(
            mirror, checkpoint, weights.folder, limit=weights.limit, verify=weights.verify, on_progress=on_progress
        )
    return ensure_local_from_source(
        checkpoint,
        weights,
        settings.storage.root_access,
        on_progress=on_progress,
        overrides=settings.config_overrides,
    )


class _DownloadProgress:
    """Logs the number of downloaded bytes at intervals."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logged_at = time.monotonic()
        self.is_stopped = False

    def __call__(self, done: int, total: int) -> None:
        if self.is_stopped:
            raise DownloadStopped("the download was stopped")
        if time.monotonic() - self._logged_at >= PROGRESS_SECONDS:
            self._logged_at = time.monotonic()
            logger.info("weights of %s: %s of %s", self._name, format_size(done), format_size(total))
