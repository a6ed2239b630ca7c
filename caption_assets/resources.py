"""The Dagster resources: each contains the configuration of one layer, and opens nothing before a step needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
from pydantic import TypeAdapter

from caption_assets.captioning.adapter import Adapter
from caption_assets.captioning.engine import CaptionEngine, EngineConfig, start_engine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.models.cache import CacheConfig, ensure_local
from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.mirror import publish
from caption_assets.models.weights import OnProgress, WeightsManifest
from caption_assets.settings import Settings
from caption_assets.store.access import StorageConfig
from caption_assets.store.root import Root
from caption_assets.workers.sandbox import Sandbox, SandboxLimits

C = TypeVar("C")
EngineWrapper = Callable[[AbstractAsyncContextManager[CaptionEngine]], AbstractAsyncContextManager[CaptionEngine]]
"""A function that wraps an engine's context manager, for example to export its metrics."""


def _dump(config: object) -> dict[str, Any]:
    """A layer's frozen configuration object as Dagster stores it and its UI shows it."""
    values: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return values


def _load(kind: type[C], values: Mapping[str, Any]) -> C:
    return TypeAdapter(kind).validate_python(values)


class Storage(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The root, for all outputs, and the source of the shards."""

    config: dict  # type: ignore[type-arg]  # dict[str, Any] would be a Map, which takes no null

    @property
    def root_url(self) -> str:
        """The root's URL."""
        return self._storage.root_url

    @property
    def source_url(self) -> str:
        """The source's URL."""
        return self._storage.source_url

    def root(self) -> Root:
        """The root, after a probe write.

        Raises:
            StoreError: if it cannot be written.
        """
        root = self.root_to_read()
        root.check_writable("CAPTION_ROOT")
        return root

    def root_to_read(self) -> Root:
        """The root without the probe write, for sensors, which open it on every tick."""
        return Root.open(self._storage.root_url, self._storage.root_access)

    def source(self) -> Root:
        """The folder of shards, which is only read."""
        return Root.open(self._storage.source_url, self._storage.source_access)

    @property
    def _storage(self) -> StorageConfig:
        return _load(StorageConfig, self.config)


class Weights(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The files of models and adapters: the root's mirror and this machine's cache."""

    config: dict  # type: ignore[type-arg]  # dict[str, Any] would be a Map, which takes no null

    def publish(
        self, root: Root, checkpoint: Checkpoint, on_progress: OnProgress, overrides: Mapping[str, Any]
    ) -> WeightsManifest:
        """Bring a model or an adapter into the mirror; see ``models.mirror.publish``."""
        cache = self._cache
        return publish(
            root, checkpoint, cache.folder, verify=cache.verify, on_progress=on_progress, overrides=overrides
        )

    def ensure_local(self, root: Root, checkpoint: Checkpoint, on_progress: OnProgress) -> Path:
        """The verified local folder of a model or an adapter; see ``models.cache.ensure_local``."""
        cache = self._cache
        return ensure_local(
            root, checkpoint, cache.folder, limit=cache.limit, verify=cache.verify, on_progress=on_progress
        )

    @property
    def _cache(self) -> CacheConfig:
        return _load(CacheConfig, self.config)


class Workers(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The worker processes that probe and decode clips."""

    limits: dict  # type: ignore[type-arg]
    count: int | None

    def start(self, default_count: int | None = None) -> Sandbox:
        """The worker pool; its processes end when the block ends.

        Args:
            default_count: number of workers if the settings give none; None for one per core, up to 8.
        """
        return Sandbox(_load(SandboxLimits, self.limits), self.count or default_count)


class Engine(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The vLLM engine. A step starts one engine for all its shards and the stages of one model."""

    config: dict  # type: ignore[type-arg]  # dict[str, Any] would be a Map, which takes no null

    @property
    def engine_config(self) -> EngineConfig:
        """The configuration as the captioning layer takes it."""
        return _load(EngineConfig, self.config)

    def start(
        self,
        model: Path,
        recipe: Recipe,
        on_crash: Callable[[str], None],
        wrap: EngineWrapper = lambda engine: engine,
        adapter: Adapter | None = None,
    ) -> EngineSupervisor:
        """Start an engine, and a new one after each crash; it is shut down when the block ends.

        Args:
            model: folder of the model's files.
            recipe: the recipe of the captions.
            on_crash: called with the reason after each crash.
            wrap: wraps each engine.
            adapter: the recipe's LoRA adapter, if it has one.
        """
        config = self.engine_config.of(recipe.variant)
        return EngineSupervisor(
            lambda: wrap(start_engine(model, recipe, config, adapter)),
            max_restarts=config.max_engine_restarts,
            on_crash=on_crash,
            settings=config.identity,
        )


def build_storage(settings: Settings) -> Storage:
    """The storage that ``settings`` configure."""
    return Storage(config=_dump(settings.storage))


def build_resources(settings: Settings) -> dict[str, object]:
    """The resources, by the names of the assets' parameters."""
    return {
        "storage": build_storage(settings),
        "weights": Weights(config=_dump(settings.weights)),
        "workers": Workers(limits=_dump(settings.decode), count=settings.decode_workers),
        "engine": Engine(config=_dump(settings.engine)),
    }
