"""The asset of a shard's manifest: its clips, probed and cut into windows."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import dagster as dg

from caption_assets import __version__
from caption_assets.assets.check_definitions import manifest_check
from caption_assets.captioning.recipe import Recipe
from caption_assets.checks.asset_checks import CLIPS_READABLE
from caption_assets.dagster_lib.check_events import logged_checks
from caption_assets.dagster_lib.failures import ShardFailures, as_dagster_failure
from caption_assets.dagster_lib.metadata import (
    ERROR,
    ROW_COUNT,
    Metadata,
    column_metadata,
    link,
    markdown_table,
    meanings,
    shortened,
)
from caption_assets.dagster_lib.private_dagster import get_input_data_version_tag
from caption_assets.dagster_lib.project import CAPTIONS_GROUP, SHARDS, Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.provenance import input_tags, output_tags
from caption_assets.dagster_lib.retry_policy import step_retry_policy
from caption_assets.dagster_lib.run_request import shards_to_process
from caption_assets.dagster_lib.shard_events import observation, observed_versions
from caption_assets.dagster_lib.status_metadata import PARTITION_MEANINGS
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.errors import CaptionAssetsError, as_project_error, number_of, printable
from caption_assets.kubernetes.pods import MANIFEST_SIZE, cpu_pod
from caption_assets.resources import Storage, Workers
from caption_assets.settings import Settings
from caption_assets.sources.listing import OtherFiles
from caption_assets.sources.manifest import PROBE_WORKERS, ProbedClip, probe_clips
from caption_assets.sources.shard import find_shard, shard_content
from caption_assets.store.failure_limits import Failures, describe
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, SCHEMA_VERSION, ManifestRow, Status, publish_manifest
from caption_assets.store.versions import TableVersions, next_manifest_version
from caption_assets.video.window import WINDOWING_VERSION, Windowing
from caption_assets.workers.sandbox import Sandbox

SHOWN_CLIPS = 5
"""Maximum number of unreadable clips in the UI. The table and the gallery have all of them."""
SHOWN_BY_CHECK: Sequence[str] = ("path", "unreadable_clips")
"""Metadata of the failed check. Dagster's UI would plot numbers."""
MEANINGS = {
    "clips": "Number of clips in the shard, including unreadable ones",
    "rows_ok": "Number of windows",
    "rows_failed": "Number of unreadable clips",
    "errors_by_kind": "Number of unreadable clips by kind of error",
    "hours": "Total duration of the readable clips, in hours",
    "predicted_visual_tokens": "Predicted number of visual tokens of all windows, by the recipe's frame rate and size",
    "bytes_read_fraction": "Share of the clips' bytes that was read: a probe reads only headers and indexes",
    "clips_per_second": "Number of clips probed per second",
    "other_files": "Number of files that are neither clips nor belong to one",
    "other_files_by_suffix": "Number of these files by suffix",
    "other_file_names": "Names of the first of these files",
    "path": "Path of the Parquet file",
    "table": "Link to the Parquet file",
    "unreadable_clips": "The first unreadable clips, with the reason",
    **PARTITION_MEANINGS,
}
"""Meaning of each metadata entry."""


class TooManyUnreadable(CaptionAssetsError):
    """A shard with more unreadable clips than the settings allow.

    Args:
        message: error message.
        metadata: metadata of the manifest, which is published.
    """

    def __init__(self, message: str, metadata: Metadata) -> None:
        super().__init__(message)
        self.metadata = metadata


class ShardChanged(CaptionAssetsError):
    """A shard that changed while it was probed."""


def build_clip_manifest(settings: Settings) -> dg.AssetsDefinition:
    """Build the asset."""
    project = Project.of(settings)
    captions = project.stages[0]

    @dg.asset(
        key=project.manifest,
        partitions_def=project.partitions,
        output_required=False,  # a step over several shards logs materializations, and yields none
        deps=[project.shards],
        description="One row for each window of each clip, and one for each unreadable clip, with the reason.",
        group_name=CAPTIONS_GROUP,
        kinds={"parquet"},
        metadata={**column_metadata(CLIP_MANIFEST), **meanings(MEANINGS)},
        code_version=manifest_code_version(settings.windowing),
        op_tags=cpu_pod(MANIFEST_SIZE),
        retry_policy=step_retry_policy(settings),
        check_specs=[manifest_check(project)],
    )
    def clip_manifest(
        context: dg.AssetExecutionContext, storage: Storage, workers: Workers
    ) -> Iterator[dg.MaterializeResult[None] | dg.Output[None]]:
        if len(context.partition_keys) > 1 and captions in context.job_def.asset_layer.selected_asset_keys:
            raise dg.Failure(
                "a run over several shards cannot make manifests and captions: deselect the captions, and materialize "
                "them afterwards",
                allow_retries=False,
            )
        failures = ShardFailures(context)
        made: list[dg.MaterializeResult[None]] = []
        with stoppable(context), as_dagster_failure():
            root, source = storage.root(), storage.source()
            check_claim(context.instance, project, storage)
            with workers.start(PROBE_WORKERS) as sandbox:
                for key in shards_to_process(context):
                    with failures.of(key), _failure_reported(context, key):
                        result, summary = _make(context, project, settings, sandbox, root, source, key)
                        if len(context.partition_keys) == 1:
                            made.append(result)
                        else:
                            context.log_event(_event(context, key, result))
                        _log_check(context, key, True, summary)
        yield from made
        failures.check()
        yield from logged_checks(context)

    return clip_manifest


def manifest_code_version(windowing: Windowing, algorithm: int = WINDOWING_VERSION) -> str:
    """The code version of manifests: versions of the tables' schema and of the windowing algorithm, and window sizes.

    Version 1 of the algorithm is left out, so that manifests of releases without such a version stay valid.
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
) -> tuple[dg.MaterializeResult[None], str]:
    """Make and publish a shard's manifest. Return the result and a summary of it.

    Raises:
        TooManyUnreadable: if more clips are unreadable than the settings allow. The manifest is published.
        ShardChanged: if the shard changed meanwhile: rows of two states may be mixed. Nothing is published.
    """
    begun = time.monotonic()
    shard = find_shard(source, key)
    content = shard_content(source, shard).version
    if observed_versions(context.instance, project, [key]).get(key) != content:
        context.log_event(observation(project, key, content))
    # The shard's last event may come from elsewhere and have no version.
    inputs = input_tags(context, project.shards, key) | {get_input_data_version_tag(project.shards): content}
    windowing, tally = settings.windowing, _Tally(settings.caption_recipe)

    def final_metadata() -> Mapping[str, str]:
        if shard_content(source, find_shard(source, key)).version != content:
            raise ShardChanged(
                "the shard changed while it was probed: materialize its manifest again once it is complete"
            )
        code_version = manifest_code_version(windowing)
        return TableVersions(tally.content, code_version, {SHARDS: content}).file_metadata

    file_metadata = {"caption_assets_version": __version__, "windowing": json.dumps(asdict(windowing))}
    others = OtherFiles()
    probed = probe_clips(sandbox, source, shard, windowing, others)
    path = publish_manifest(root, key, tally.rows(probed), file_metadata, final_metadata)
    metadata = {
        **tally.metadata(time.monotonic() - begun),
        **_other_files(others),
        "path": dg.MetadataValue.path(root.address(path)),
        **({"table": link(root, path, settings.web_url)} if settings.web_url else {}),
        "unreadable_clips": markdown_table(["clip", "kind", "reason"], map(_reason, tally.first_unreadable)),
    }
    context.log.info(f"{key}: {tally}")
    if message := settings.failure_limits.too_many(CLIP_MANIFEST, tally.failures):
        raise TooManyUnreadable(message, metadata)
    return dg.MaterializeResult(data_version=dg.DataVersion(tally.content), tags=inputs, metadata=metadata), str(tally)


@contextmanager
def _failure_reported(context: dg.AssetExecutionContext, shard: str) -> Iterator[None]:
    """Report the reason of a failure as an observation and a failed check.

    The UI shows the observation with the shard's metadata once there was a materialization, and the check in any case.
    """
    try:
        yield
    except Exception as error:
        found = error.metadata if isinstance(error, TooManyUnreadable) else {}
        reason = printable(str(as_project_error(error)))
        context.log_event(dg.AssetObservation(context.asset_key, partition=shard, metadata={ERROR: reason, **found}))
        _log_check(context, shard, False, reason, {name: found[name] for name in SHOWN_BY_CHECK if name in found})
        raise


def _other_files(others: OtherFiles) -> dict[str, Any]:
    """Metadata of a shard's files that are neither clips nor belong to one."""
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
    """The event that Dagster makes from the result of a step over one shard."""
    assert result.data_version is not None  # set by ``_make``
    tags = output_tags(context, context.asset_key, result.data_version.value) | dict(result.tags or {})
    return dg.AssetMaterialization(context.asset_key, partition=shard, metadata=result.metadata, tags=tags)


def _log_check(
    context: dg.AssetExecutionContext,
    shard: str,
    passed: bool,
    description: str,
    metadata: Mapping[str, dg.MetadataValue | int | float | str] | None = None,
) -> None:
    """Log the result of the check ``clips_readable``: a yielded one would have no partition in a run over a range."""
    context.log_event(
        dg.AssetCheckEvaluation(
            asset_key=context.asset_key,
            check_name=CLIPS_READABLE.name,
            passed=passed,
            description=description,
            metadata=metadata,
            partition=shard,
            blocking=True,
        )
    )


@dataclass
class _Tally:
    """Counts of a manifest's rows, collected while the rows are written: they may not all fit into memory."""

    recipe: Recipe
    """The recipe that will caption the windows."""
    clips: int = 0
    windows: int = 0
    seconds: float = 0.0
    """Duration of the readable clips."""
    size: int = 0
    """Size of all clips, in bytes."""
    bytes_read: int = 0
    tokens: int = 0
    """Predicted visual tokens of all windows."""
    errors: Counter[str] = field(default_factory=Counter)
    """Number of unreadable clips by kind of error."""
    first_unreadable: list[ManifestRow] = field(default_factory=list)
    content: str = ""
    """Hash of all rows."""

    def __str__(self) -> str:
        """A summary for the log: ``12 clips, 13 windows; 1 clip unreadable: 1 damaged``."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.errors.most_common())
        unreadable = f"; {self.errors.total()} unreadable: {kinds}" if self.errors else ""
        return f"{number_of(self.clips, 'clip')}, {number_of(self.windows, 'window')}{unreadable}"

    def rows(self, clips: Iterable[ProbedClip]) -> Iterator[ManifestRow]:
        """Yield and count the rows of clips."""
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
            self.tokens += self.recipe.predicted_tokens(row)
            return
        self.errors[row.error_kind or ""] += 1
        if len(self.first_unreadable) < SHOWN_CLIPS:
            self.first_unreadable.append(row)

    @property
    def failures(self) -> Failures:
        """The unreadable clips."""
        first = describe(self.first_unreadable[0]) if self.first_unreadable else ""
        return Failures(self.errors.total(), self.clips, first)

    def metadata(self, took: float) -> Metadata:
        """Metadata for the UI. ``took`` is the time that the manifest took, in seconds."""
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
