"""A shard's clips, probed and cut into windows."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version

import dagster as dg

from caption_assets.assets.columns import table_facts
from caption_assets.assets.failures import clear_failures
from caption_assets.assets.markdown import markdown_table
from caption_assets.assets.partitions import SHARDS
from caption_assets.assets.shard_index import SHARDS_SPEC
from caption_assets.captioning.prediction import predicted_tokens
from caption_assets.captioning.recipe import Recipe
from caption_assets.clips.manifest import PROBERS, ProbedClip, probe_clips
from caption_assets.clips.shard import find_shard
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import Clips, Storage
from caption_assets.settings import Settings
from caption_assets.store.tables import SCHEMA_VERSION, ManifestRow, Status, Table, publish_manifest

SHOWN_CLIPS = 20
"""Unreadable clips that the UI shows; the table holds all."""


class TooManyUnreadable(CaptionAssetsError):
    """A shard of which more clips are unreadable than the settings allow."""


def build_clip_manifest(settings: Settings) -> dg.AssetsDefinition:
    """The asset that cuts clips as ``settings`` say."""
    windowing, recipe = settings.windowing, settings.recipe
    facts = {"caption_assets_version": version("caption-assets"), "windowing": json.dumps(asdict(windowing))}
    cut = f"{windowing.size}-{windowing.remainder_threshold}" if windowing.seconds is None else f"{windowing.seconds}s"

    @dg.asset(
        partitions_def=SHARDS,
        deps=[SHARDS_SPEC.key],
        description="One row for each window of each clip, and one for each clip that cannot be read, with the reason.",
        kinds={"parquet"},
        code_version=f"{SCHEMA_VERSION}-{cut}",
    )
    def clip_manifest(context: dg.AssetExecutionContext, storage: Storage, clips: Clips) -> dg.MaterializeResult[None]:
        begun = time.monotonic()
        tally = _Tally(recipe)
        with clear_failures():
            root, source = storage.root(), storage.source()
            shard = find_shard(source, context.partition_key)
            with clips.start(PROBERS) as sandbox:
                probed = probe_clips(sandbox, source, shard, windowing)
                path = publish_manifest(root, shard.key, tally.rows(probed), facts)
            tally.check_unreadable(settings.max_unreadable_fraction)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(tally.content),
            metadata={
                **tally.metadata(time.monotonic() - begun),
                "path": dg.MetadataValue.path(root.address(path)),
                "unreadable_clips": markdown_table(["clip", "kind", "reason"], map(_reason, tally.first_unreadable)),
            },
        )

    return clip_manifest


@dataclass
class _Tally:
    """What is told of a manifest, counted as its rows pass: they are never all in memory."""

    recipe: Recipe
    """What the windows will be captioned with."""
    clips: int = 0
    windows: int = 0
    seconds: float = 0.0
    """Of video, in readable clips."""
    size: int = 0
    """Bytes of all clips."""
    bytes_read: int = 0
    tokens: int = 0
    """Visual tokens of all windows, as predicted."""
    errors: Counter[str] = field(default_factory=Counter)
    """Unreadable clips by kind."""
    first_unreadable: list[ManifestRow] = field(default_factory=list)
    content: str = ""
    """Hash of all rows."""

    def rows(self, clips: Iterable[ProbedClip]) -> Iterator[ManifestRow]:
        """The rows of ``clips``, counted."""
        for clip in clips:
            self.clips += 1
            self.size += clip.size
            self.bytes_read += clip.bytes_read
            self.seconds += clip.rows[0].clip_seconds or 0.0
            for row in clip.rows:
                self._count(row)
                yield row

    def _count(self, row: ManifestRow) -> None:
        self.content = sha256(f"{self.content}{row!r}".encode()).hexdigest()[:16]
        if row.status is Status.OK:
            self.windows += 1
            self.tokens += predicted_tokens(row, self.recipe.variant, self.recipe.frames)
            return
        self.errors[row.error_kind or ""] += 1
        if len(self.first_unreadable) < SHOWN_CLIPS:
            self.first_unreadable.append(row)

    def check_unreadable(self, limit: float) -> None:
        """Refuse a shard of which a larger share of the clips than ``limit`` is unreadable."""
        unreadable = self.errors.total()
        if self.clips and unreadable / self.clips > limit:
            first = self.first_unreadable[0]
            raise TooManyUnreadable(
                f"{unreadable} of {self.clips} clips are unreadable, more than CAPTION_MAX_UNREADABLE_FRACTION = "
                f"{limit:g}; the first: {first.clip_key!r}: {first.error}. The manifest was published for you to look "
                "at; mend the clips or raise the limit"
            )

    def metadata(self, took: float) -> dict[str, dg.MetadataValue | int | float]:
        """For the UI; the work took ``took`` seconds."""
        return {
            "clips": self.clips,
            **table_facts(Table.MANIFEST, self.windows + self.errors.total()),
            "rows_ok": self.windows,
            "rows_failed": self.errors.total(),
            "errors_by_kind": dg.MetadataValue.json(dict(self.errors)),
            "hours": round(self.seconds / 3600, 4),
            "predicted_visual_tokens": self.tokens,
            "bytes_read_fraction": round(self.bytes_read / self.size, 4) if self.size else 0.0,
            "clips_per_second": round(self.clips / took, 2),
        }


def _reason(row: ManifestRow) -> list[str]:
    return [row.clip_key, row.error_kind or "", row.error or ""]
