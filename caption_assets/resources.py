"""What the assets work with, as Dagster resources: configuration only. Nothing is opened before a step asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import dagster as dg

from caption_assets.captioning.adapter import Adapter
from caption_assets.captioning.engine import CaptionEngine, EngineConfig, start_engine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.models.cache import ensure_local
from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.mirror import publish
from caption_assets.models.weights import Progress, WeightsManifest
from caption_assets.settings import Settings
from caption_assets.store.access import Access
from caption_assets.store.root import Root
from caption_assets.workers.sandbox import Sandbox, SandboxLimits

Watch = Callable[[AbstractAsyncContextManager[CaptionEngine]], AbstractAsyncContextManager[CaptionEngine]]
"""Something that sees an engine come and go."""


class S3Access(dg.Config):
    """How object storage is reached: ``Access`` as Dagster's configuration, without credentials."""

    profile: str | None
    anonymous: bool
    requester_pays: bool
    path_style: bool | None

    @property
    def access(self) -> Access:
        """The same for the layers below."""
        return Access(self.profile, self.anonymous, self.requester_pays, self.path_style)


class Storage(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where shards are read and outputs are written."""

    root_url: str
    source_url: str
    root_access: S3Access
    source_access: S3Access

    def root(self) -> Root:
        """The root for everything written, once it has taken a probe write.

        Raises:
            StoreError: if it cannot be written.
        """
        root = self.root_to_read()
        root.check_writable("CAPTION_ROOT")
        return root

    def root_to_read(self) -> Root:
        """The same root without the probe write, for what only looks at it again and again."""
        return Root.open(self.root_url, self.root_access.access)

    def source(self) -> Root:
        """The folder of shards, only to be read."""
        return Root.open(self.source_url, self.source_access.access)


class Weights(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The files of models and adapters, in the root's mirror and on this machine."""

    cache: str
    cache_gb: float | None
    verify: bool

    def publish(
        self, root: Root, checkpoint: Checkpoint, told: Progress, overrides: Mapping[str, Any]
    ) -> WeightsManifest:
        """Bring a model or an adapter into the mirror; see ``models.mirror.publish``."""
        cache = Path(self.cache).expanduser()
        return publish(root, checkpoint, cache, verify=self.verify, told=told, overrides=overrides)

    def ensure_local(self, root: Root, checkpoint: Checkpoint, told: Progress) -> Path:
        """The folder of a model or an adapter on this machine, verified."""
        return ensure_local(
            root,
            checkpoint,
            Path(self.cache).expanduser(),
            limit=None if self.cache_gb is None else int(self.cache_gb * 2**30),
            verify=self.verify,
            told=told,
        )


class Clips(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The worker processes that read clips."""

    seconds: float
    memory_gb: float
    workers: int | None

    def start(self, workers: int | None = None) -> Sandbox:
        """Workers, which end with the block: as many as are configured, or else ``workers``, or one a core."""
        return Sandbox(SandboxLimits(self.seconds, self.memory_gb), self.workers or workers)


class Engine(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The vLLM engine's configuration. A step starts one engine for all its shards and both stages."""

    gpu_memory_utilization: float | None
    processor_cache_gb: float | None
    max_batched_tokens: int | None
    tensor_parallel: int
    data_parallel: int
    arguments: dict[str, Any]
    request_seconds: float
    frames_gb: float
    max_restarts: int

    @property
    def config(self) -> EngineConfig:
        """As the captioning core takes it."""
        return EngineConfig(
            gpu_memory_utilization=self.gpu_memory_utilization,
            processor_cache_gb=self.processor_cache_gb,
            max_batched_tokens=self.max_batched_tokens,
            tensor_parallel=self.tensor_parallel,
            data_parallel=self.data_parallel,
            arguments=self.arguments,
            request_seconds=self.request_seconds,
            frames_gb=self.frames_gb,
        )

    def start(
        self,
        model: Path,
        recipe: Recipe,
        on_death: Callable[[str], None],
        watch: Watch = lambda engine: engine,
        adapter: Adapter | None = None,
    ) -> EngineSupervisor:
        """Build an engine, and another when it dies; it is shut down when the block ends.

        Args:
            model: the folder of its files.
            recipe: what captions are made with.
            on_death: told of each death, with its reason.
            watch: put around each engine.
            adapter: the recipe's LoRA adapter, if it has one.
        """
        config = self.config
        return EngineSupervisor(
            lambda: watch(start_engine(model, recipe, config, adapter)),
            max_restarts=self.max_restarts,
            on_death=on_death,
            settings=config.identity,
        )


def build_storage(settings: Settings) -> Storage:
    """Where ``settings`` say that shards and outputs lie."""
    return Storage(
        root_url=settings.root,
        source_url=settings.source_url,
        root_access=S3Access(
            profile=settings.root_profile,
            anonymous=False,  # it is written
            requester_pays=False,
            path_style=settings.s3_path_style,
        ),
        source_access=S3Access(
            # A source within the root is the root's.
            profile=settings.source_profile or (settings.root_profile if settings.source is None else None),
            anonymous=settings.s3_anonymous,
            requester_pays=settings.s3_requester_pays,
            path_style=settings.s3_path_style,
        ),
    )


def build_resources(settings: Settings) -> dict[str, object]:
    """The resources by the names under which the assets take them."""
    return {
        "storage": build_storage(settings),
        "weights": Weights(cache=str(settings.cache), cache_gb=settings.cache_gb, verify=settings.verify_weights),
        "clips": Clips(
            seconds=settings.decode_timeout_seconds,
            memory_gb=settings.decode_memory_gb,
            workers=settings.decode_workers,
        ),
        "engine": Engine(
            gpu_memory_utilization=settings.gpu_memory_utilization,
            processor_cache_gb=settings.processor_cache_gb,
            max_batched_tokens=settings.max_batched_tokens,
            tensor_parallel=settings.tensor_parallel_size,
            data_parallel=settings.data_parallel_size,
            arguments=settings.engine_args,
            request_seconds=settings.request_timeout_seconds,
            frames_gb=settings.frames_gb,
            max_restarts=settings.max_engine_restarts,
        ),
    }
