"""The names that a project has on a Dagster instance, where other projects may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from caption_assets.captioning.stages import STAGES
from caption_assets.export.index import DATASET
from caption_assets.store.tables import CLIP_MANIFEST

SHARDS = "shards"
"""Name of the external asset for the source's shards, and of the partitions: one key for each shard."""
SOURCE_GROUP = "source"
MODEL_GROUP = "model"
CAPTIONS_GROUP = "captions"
"""The groups of assets in the UI."""


@dataclass(frozen=True, slots=True)
class Project:
    """The asset keys and partitions of one project.

    Everything that an instance stores for a project is stored by these. Names of sensors and schedules need no prefix:
    they belong to a code location.
    """

    name: str | None = None
    """``CAPTION_PROJECT``. None is the default project, whose names have no prefix."""

    def key(self, asset: str) -> dg.AssetKey:
        """The key of an asset of this project."""
        return dg.AssetKey([self.name, asset] if self.name else asset)

    @property
    def shards(self) -> dg.AssetKey:
        """The source's shards, an external asset."""
        return self.key(SHARDS)

    @property
    def weights(self) -> dg.AssetKey:
        """The model's files."""
        return self.key("model_weights")

    @property
    def manifest(self) -> dg.AssetKey:
        """The shards' clips, cut into windows."""
        return self.key(CLIP_MANIFEST)

    @property
    def stages(self) -> Sequence[dg.AssetKey]:
        """The captions, in the order in which they are made."""
        return [self.key(stage.name) for stage in STAGES]

    @property
    def dataset(self) -> dg.AssetKey:
        """The dataset for training."""
        return self.key(DATASET)

    @property
    def partitions_name(self) -> str:
        """Name under which the instance stores the registered shards."""
        return f"{self.name}/{SHARDS}" if self.name else SHARDS

    @property
    def partitions(self) -> dg.DynamicPartitionsDefinition:
        """The registered shards, the one dimension of the per-shard assets."""
        return dg.DynamicPartitionsDefinition(name=self.partitions_name)

    def registered(self, instance: dg.DagsterInstance) -> list[str]:
        """The registered shards, in the order in which they were registered."""
        return list(instance.get_dynamic_partitions(self.partitions_name))


def table_of(key: dg.AssetKey) -> str:
    """The table that an asset of any project writes."""
    return key.path[-1]
