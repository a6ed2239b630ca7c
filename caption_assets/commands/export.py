"""The command that exports shards as a training dataset, a run for each."""

from __future__ import annotations

import time
from collections.abc import Sequence

import dagster as dg

from caption_assets.automation.commands import open_instance
from caption_assets.automation.shard_states import read_states
from caption_assets.commands.launch import launch, partition_tags
from caption_assets.commands.run import INTERRUPTED, note, time_left
from caption_assets.commands.selection import check_shards
from caption_assets.commands.summary import Summary
from caption_assets.dagster_lib.metadata import count
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.errors import CaptionAssetsError, number_of
from caption_assets.export.index import DATASET
from caption_assets.export.merged import merge_dataset
from caption_assets.resources import build_storage
from caption_assets.settings import load_settings


class ExportNotSet(CaptionAssetsError):
    """An export without a format."""


def export_shards(names: Sequence[str]) -> int:
    """Export captioned shards, write the file of the whole dataset if the format has one, and print where it is.

    Args:
        names: names of the shards; empty for all with current captions.

    Returns:
        The exit status: 0, 1 if a shard failed, ``INTERRUPTED`` after Ctrl-C.

    Raises:
        ExportNotSet: if CAPTION_EXPORT is not set.
        UnknownName: if no such shard is registered.
        CaptionAssetsError: if settings, root or instance cannot be used.
    """
    settings = load_settings()
    if settings.dataset is None:
        raise ExportNotSet("CAPTION_EXPORT is not set: add --format webdataset, or another format")
    project, storage = Project.of(settings), build_storage(settings)
    with open_instance() as instance:
        check_claim(instance, project, storage)
        root = storage.root_to_read()
        states = read_states(instance, project, root)
        check_shards(names, states.order, "the project")
        captioned = [shard for shard in states.order if shard in states.captioned and (not names or shard in names)]
        summary = Summary(captioned)
        summary.failures |= {name: f"not captioned: caption-assets run {name}" for name in {*names} - {*captioned}}
        windows = _export(instance, project, captioned, summary)
    merged = None if summary.is_interrupted else merge_dataset(storage.root(), settings.dataset)
    for line in summary.failed_shards():
        print(line)
    print(f"exported  {len(windows)} of {len({*names, *captioned})} shards, {sum(windows)} windows")
    print(f"dataset   {root.address(DATASET)}")
    if merged:
        content = f"{number_of(merged.samples, 'sample')} of {number_of(merged.shards, 'shard')}"
        print(f"merged    {root.address(merged.path)}: {content}")
    if merged and merged.others:
        print(
            f"          {len(merged.others)} shards were exported in another format or with other columns, and are not "
            "part of it: caption-assets export --all"
        )
    if summary.is_interrupted:
        return INTERRUPTED
    return 1 if summary.failures else 0


def _export(instance: dg.DagsterInstance, project: Project, shards: Sequence[str], summary: Summary) -> list[int]:
    """Run the exports, and return the number of windows of each exported shard."""
    windows: list[int] = []
    begun = time.monotonic()
    try:
        for number, shard in enumerate(shards, 1):
            run = launch(instance, [project.dataset], partition_tags(shard))
            if run.is_interrupted:
                raise KeyboardInterrupt
            if not run.success:
                summary.failures[shard] = run.reasons([shard]).get(shard) or run.failure or "the run failed"
            windows += [count(metadata, "windows") for metadata in run.materialized(project.dataset).values()]
            left = time_left(time.monotonic() - begun, number, len(shards))
            note(f"exported {number} of {len(shards)} shards{left}")
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        summary.is_interrupted = True
    return windows
