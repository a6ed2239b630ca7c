"""A shard's clips, probed and cut into windows."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version

import dagster as dg

from caption_assets.assets.failures import clear_failures
from caption_assets.assets.markdown import markdown_table
from caption_assets.assets.partitions import SHARDS
from caption_assets.assets.shard_index import SHARDS_SPEC
from caption_assets.clips.manifest import manifest_rows
from caption_assets.clips.shard import find_shard
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import Storage
from caption_assets.settings import Settings
from caption_assets.store.tables import SCHEMA_VERSION, ManifestRow, Status, publish_manifest


class TooManyUnreadable(CaptionAssetsError):
    """A shard of which more clips are unreadable than the settings allow."""


def build_clip_manifest(settings: Settings) -> dg.AssetsDefinition:
    """The asset that cuts clips as ``settings`` say."""
    windowing = settings.windowing
    facts = {"caption_assets_version": version("caption-assets"), "windowing": json.dumps(asdict(windowing))}

    @dg.asset(
        partitions_def=SHARDS,
        deps=[SHARDS_SPEC.key],
        description="One row for each window of each clip, and one for each clip that cannot be read, with the reason.",
        kinds={"parquet"},
        code_version=f"{SCHEMA_VERSION}-{windowing.size}-{windowing.remainder_threshold}",
    )
    def clip_manifest(context: dg.AssetExecutionContext, storage: Storage) -> dg.MaterializeResult[None]:
        begun = time.monotonic()
        with clear_failures():
            root, source = storage.root(), storage.source()
            shard = find_shard(source, context.partition_key)
            rows = list(manifest_rows(source, shard, windowing))
            path = publish_manifest(root, shard.key, rows, facts)
            _check_unreadable(rows, settings.max_unreadable_fraction)
        seconds = time.monotonic() - begun
        return dg.MaterializeResult(
            data_version=dg.DataVersion(sha256(repr(rows).encode()).hexdigest()[:16]),
            metadata={
                **_counts(rows),
                "clips_per_second": round(len({row.clip_key for row in rows}) / seconds, 2),
                "path": dg.MetadataValue.path(root.address(path)),
                "unreadable_clips": markdown_table(["clip", "kind", "reason"], _unreadable(rows)),
            },
        )

    return clip_manifest


def _check_unreadable(rows: Sequence[ManifestRow], limit: float) -> None:
    clips = {row.clip_key for row in rows}
    unreadable = [row for row in rows if row.status is Status.FAILED]
    if clips and len(unreadable) / len(clips) > limit:
        raise TooManyUnreadable(
            f"{len(unreadable)} of {len(clips)} clips are unreadable, more than CAPTION_MAX_UNREADABLE_FRACTION = "
            f"{limit:g}; the first: {unreadable[0].clip_key!r}: {unreadable[0].error}. The manifest was published for "
            "you to look at; mend the clips or raise the limit"
        )


def _counts(rows: Sequence[ManifestRow]) -> dict[str, int | float]:
    statuses = Counter(row.status for row in rows)
    lengths = {row.clip_key: row.clip_seconds or 0.0 for row in rows}
    return {
        "clips": len(lengths),
        "rows": len(rows),
        "rows_ok": statuses[Status.OK],
        "rows_failed": statuses[Status.FAILED],
        "hours": round(sum(lengths.values()) / 3600, 4),
    }


def _unreadable(rows: Sequence[ManifestRow], most: int = 20) -> list[list[str]]:
    unreadable = [row for row in rows if row.status is Status.FAILED]
    return [[row.clip_key, row.error_kind or "", row.error or ""] for row in unreadable[:most]]
