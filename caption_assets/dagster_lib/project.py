"""The names of a project on a Dagster instance. An instance may have several projects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import dagster as dg

from caption_assets.captioning.open_shard import WEIGHTS_ASSET, direct_inputs
from caption_assets.export.index import DATASET
from caption_assets.settings import Settings
from caption_assets.store.tables import CLIP_MANIFEST

SHARDS = "shards"
"""Name of the external asset of the source's shards, and of the partitions: one key for each shard."""
SOURCE_GROUP = "source"
MODEL_GROUP = "model"
CAPTIONS_GROUP = "captions"
"""Groups of assets in the UI."""


@dataclass(frozen=True, slots=True)
class Project:
    """The asset keys and partitions of one project.

    An instance stores a project's events under these names. Names of sensors and schedules need no prefix, because they
    belong to a code location.
    """

    name: str | None = None
    """``CAPTION_PROJECT``. None is the default project; its names have no prefix."""
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The direct inputs of each stage, by name, each stage after those that it needs."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The project that the settings describe, with the stages of its recipe."""
        return cls(settings.project, {stage.name: direct_inputs(stage) for stage in settings.caption_recipe.stages})

    def key(self, asset: str) -> dg.AssetKey:
        """The key of an asset of this project."""
        return dg.AssetKey([self.name, asset] if self.name else asset)

    @property
    def shards(self) -> dg.AssetKey:
        """Key of the source's shards, an external asset."""
        return self.key(SHARDS)

    @property
    def shard_index(self) -> dg.AssetKey:
        """Key of the asset that registers the shards."""
        return self.key("shard_index")

    @property
    def weights(self) -> dg.AssetKey:
        """Key of the model's weights."""
        return self.key(WEIGHTS_ASSET)

    @property
    def manifest(self) -> dg.AssetKey:
        """Key of the manifests."""
        return self.key(CLIP_MANIFEST)

    @property
    def stages(self) -> Sequence[dg.AssetKey]:
        """Keys of the captions, in the order of the stages."""
        return [self.key(stage) for stage in self.inputs]

    @property
    def tables(self) -> Sequence[str]:
        """Names of the tables, each after its inputs."""
        return [CLIP_MANIFEST, *self.inputs]

    def with_upstream(self, stages: Collection[str]) -> list[str]:
        """These stages and all that they need, each after those."""
        wanted = set(stages)
        for stage in reversed(list(self.inputs)):
            if stage in wanted:
                wanted.update(self.inputs[stage])
        return [stage for stage in self.inputs if stage in wanted]

    @property
    def dataset(self) -> dg.AssetKey:
        """Key of the training dataset."""
        return self.key(DATASET)

    @property
    def partitions_name(self) -> str:
        """Name of the partitions in the instance."""
        return f"{self.name}/{SHARDS}" if self.name else SHARDS

    @property
    def partitions(self) -> dg.DynamicPartitionsDefinition:
        """The partitions of the per-shard assets: the registered shards."""
        return dg.DynamicPartitionsDefinition(name=self.partitions_name)

    def registered(self, instance: dg.DagsterInstance) -> list[str]:
        """The registered shards, in order of registration."""
        return list(instance.get_dynamic_partitions(self.partitions_name))


def table_of(key: dg.AssetKey) -> str:
    """The table that an asset of any project writes."""
    return key.path[-1]
