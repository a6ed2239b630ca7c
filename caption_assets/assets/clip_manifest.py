"""A shard's clips, probed and cut into windows."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import dagster as dg

from caption_assets import __version__
from caption_assets.assets.shard_index import observation, observed_versions
from caption_assets.captioning.prediction import predicted_tokens
from caption_assets.captioning.recipe import Recipe
from caption_assets.dagster_lib.failures import ShardFailures, as_dagster_failure
from caption_assets.dagster_lib.metadata import (
    ROW_COUNT,
    Metadata,
    column_metadata,
    link,
    markdown_table,
    shortened,
)
from caption_assets.dagster_lib.private import get_input_data_version_tag
from caption_assets.dagster_lib.project import CAPTIONS_GROUP, SHARDS, Project
from caption_assets.dagster_lib.provenance import input_tags, output_tags
from caption_assets.dagster_lib.selection import is_selected, shards_to_make
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.errors import CaptionAssetsError, as_project_error, printable
from caption_assets.kubernetes.pods import MANIFEST_SIZE, cpu_pod, step_retries
from caption_assets.resources import Clips, Storage
from caption_assets.settings import Settings
from caption_assets.sources.listing import OtherFiles
from caption_assets.sources.manifest import PROBE_WORKERS, ProbedClip, probe_clips
from caption_assets.sources.shard import find_shard, shard_content
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, SCHEMA_VERSION, ManifestRow, Status, publish_manifest
from caption_assets.store.versions import TableVersions, next_manifest_version
from caption_assets.video.window import WINDOWING_VERSION, Windowing
from caption_assets.workers.sandbox import Sandbox

SHOWN_CLIPS = 5
"""Unreadable clips that the UI shows; the table and the gallery hold all."""


class TooManyUnreadable(CaptionAssetsError):
    """A shard of which more clips are unreadable than the settings allow.

    Args:
        message: for a person.
        metadata: on the manifest, which was published nevertheless.
    """

    def __init__(self, message: str, metadata: Metadata) -> None:
        super().__init__(message)
        self.metadata = metadata


class ShardChanged(CaptionAssetsError):
    """A shard that was written to while it was read."""


def build_clip_manifest(settings: Settings) -> dg.AssetsDefinition:
    """The asset that cuts clips as ``settings`` say."""
    project = Project(settings.project)
    captions = project.stages[0]

    @dg.asset(
        key=project.manifest,
        partitions_def=project.partitions,
        output_required=False,  # a step over several shards logs the materialization of each itself
        deps=[project.shards],
        description="One row for each window of each clip, and one for each clip that cannot be read, with the reason.",
        group_name=CAPTIONS_GROUP,
        kinds={"parquet"},
        metadata=column_metadata(CLIP_MANIFEST),
        code_version=manifest_code_version(settings.windowing),
        op_tags=cpu_pod(MANIFEST_SIZE),
        retry_policy=step_retries(settings),
    )
    def clip_manifest(
        context: dg.AssetExecutionContext, storage: Storage, clips: Clips
    ) -> Iterator[dg.MaterializeResult[None]]:
        if len(context.partition_keys) > 1 and is_selected(context, captions):
            raise dg.Failure(
                "manifests of several shards are made in a run of their own: leave the captions out of it",
                allow_retries=False,
            )
        failures = ShardFailures(context)
        made: list[dg.MaterializeResult[None]] = []
        with stoppable(context), as_dagster_failure():
            root, source = storage.root(), storage.source()
            with clips.start(PROBE_WORKERS) as sandbox:
                for key in shards_to_make(context):
                    with failures.of(key), _failure_shown(context, key):
                        result = _make(context, project, settings, sandbox, root, source, key)
                        if len(context.partition_keys) == 1:
                            made.append(result)
                        else:
                            context.log_event(_event(context, key, result))
        yield from made
        failures.check()

    return clip_manifest


def manifest_code_version(windowing: Windowing, algorithm: int = WINDOWING_VERSION) -> str:
    """The code version of manifests: version of the tables' schema and of the windowing algorithm, and window sizes.

    Version 1 of the algorithm is left out: manifests of releases without versions of it stay valid.
    """
    cut = f"{windowing.size}-{windowing.remainder_threshold}" if windowing.seconds is None else f"{windowing.seconds}s"
    return f"{SCHEMA_VERSION}-{cut}" if algorithm == 1 else f"{SCHEMA_VERSION}-v{algorithm}-{cut}"


def is_of_this_schema(code_version: str) -> bool:
    """Whether this release reads manifests of a code version, however their clips were cut."""
    return code_version.partition("-")[0] == SCHEMA_VERSION


def _make(
    context: dg.AssetExecutionContext,
    project: Project,
    settings: Settings,
    sandbox: Sandbox,
    root: Root,
    source: Root,
    key: str,
) -> dg.MaterializeResult[None]:
    """Publish a shard's manifest.

    Raises:
        TooManyUnreadable: if more clips are unreadable than the settings allow; the manifest is published nevertheless.
        ShardChanged: if the shard is not the same at the end: what was read may be neither the old one nor the new.
            Nothing is published then.
    """
    begun = time.monotonic()
    shard = find_shard(source, key)
    content = shard_content(source, shard).version
    if observed_versions(context.instance, project, [key]).get(key) != content:
        context.log_event(observation(project, key, content))
    # Not the version of the shard's last event, which may be somebody else's and without one.
    inputs = input_tags(context, project.shards, key) | {get_input_data_version_tag(project.shards): content}
    windowing, tally = settings.windowing, _Tally(settings.recipe)

    def conclude() -> Mapping[str, str]:
        if shard_content(source, find_shard(source, key)).version != content:
            raise ShardChanged("it changed while it was probed: materialize its manifest again once it is complete")
        code_version = manifest_code_version(windowing)
        return TableVersions(tally.content, code_version, {SHARDS: content}).file_metadata

    facts = {"caption_assets_version": __version__, "windowing": json.dumps(asdict(windowing))}
    others = OtherFiles()
    probed = probe_clips(sandbox, source, shard, windowing, others)
    path = publish_manifest(root, key, tally.rows(probed), facts, conclude)
    metadata = {
        **tally.metadata(time.monotonic() - begun),
        **_other_files(others),
        "path": dg.MetadataValue.path(root.address(path)),
        **({"table": link(root, path, settings.link_url)} if settings.link_url else {}),
        "unreadable_clips": markdown_table(["clip", "kind", "reason"], map(_reason, tally.first_unreadable)),
    }
    if complaint := tally.too_many_unreadable(settings.max_unreadable_fraction):
        raise TooManyUnreadable(complaint, metadata)
    return dg.MaterializeResult(data_version=dg.DataVersion(tally.content), tags=inputs, metadata=metadata)


@contextmanager
def _failure_shown(context: dg.AssetExecutionContext, shard: str) -> Iterator[None]:
    """Show why a shard failed on its page in the UI, which names but the run where nothing was materialized."""
    try:
        yield
    except Exception as error:
        found = error.metadata if isinstance(error, TooManyUnreadable) else {}
        metadata = {"error": printable(str(as_project_error(error))), **found}
        context.log_event(dg.AssetObservation(context.asset_key, partition=shard, metadata=metadata))
        raise


def _other_files(others: OtherFiles) -> dict[str, Any]:
    """What is told of a shard's files that are neither clips nor go with one."""
    if not others.count:
        return {}
    return {
        "other_files": others.count,
        "other_files_by_suffix": dg.MetadataValue.json(dict(others.by_suffix.most_common(SHOWN_CLIPS))),
        "other_file_names": others.first_names,
    }


def _event(
    context: dg.AssetExecutionContext, shard: str, result: dg.MaterializeResult[None]
) -> dg.AssetMaterialization:
    """What Dagster makes of the result of a step over one shard."""
    assert result.data_version is not None  # a manifest has one
    tags = output_tags(context, context.asset_key, result.data_version.value) | dict(result.tags or {})
    return dg.AssetMaterialization(context.asset_key, partition=shard, metadata=result.metadata, tags=tags)


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
        self.content = next_manifest_version(self.content, row)
        if row.status is Status.OK:
            self.windows += 1
            self.tokens += predicted_tokens(row, self.recipe.variant, self.recipe.frames)
            return
        self.errors[row.error_kind or ""] += 1
        if len(self.first_unreadable) < SHOWN_CLIPS:
            self.first_unreadable.append(row)

    def too_many_unreadable(self, limit: float) -> str | None:
        """What is wrong if a larger share of the clips than ``limit`` is unreadable."""
        unreadable = self.errors.total()
        if not self.clips or unreadable / self.clips <= limit:
            return None
        first = self.first_unreadable[0]
        return (
            f"{unreadable} of {self.clips} clips are unreadable, more than CAPTION_MAX_UNREADABLE_FRACTION = "
            f"{limit:g}; the first: {first.clip_key!r}: {first.error}. The manifest was published for you to look "
            "at; fix the clips or raise the limit"
        )

    def metadata(self, took: float) -> Metadata:
        """For the UI; the work took ``took`` seconds."""
        return {
            "clips": self.clips,
            ROW_COUNT: self.windows + self.errors.total(),
            "rows_ok": self.windows,
            "rows_failed": self.errors.total(),
            "errors_by_kind": dg.MetadataValue.json(dict(self.errors)),
            "hours": round(self.seconds / 3600, 4),
            "predicted_visual_tokens": self.tokens,
            "bytes_read_fraction": round(self.bytes_read / self.size, 4) if self.size else 0.0,
            "clips_per_second": round(self.clips / took, 2),
        }


def _reason(row: ManifestRow) -> list[str]:
    return [row.clip_key, row.error_kind or "", shortened(row.error or "")]
