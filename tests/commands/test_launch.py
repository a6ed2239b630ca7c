from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.compute_logs import execute_posix_tail

from caption_assets.commands.launch import COMMAND_ID, COMMAND_ID_TAG, cancel_unfinished, range_tags
from caption_assets.dagster_lib.private_dagster import isolate_log_processes
from caption_assets.dagster_lib.run_request import requested_shards

pytestmark = pytest.mark.fast

CAPTIONS = dg.AssetKey("stage1_captions")


def test_unfinished_runs_of_the_command_are_canceled(instance: dg.DagsterInstance) -> None:
    own, others = {COMMAND_ID_TAG: COMMAND_ID}, {COMMAND_ID_TAG: "other"}
    created, done = dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.SUCCESS
    runs = [
        instance.add_run(dg.DagsterRun(job_name="j", tags=tags, status=status))
        for tags, status in ((own, created), (own, done), (others, created), ({}, created))
    ]
    cancel_unfinished(instance)
    stored = [instance.get_run_by_id(run.run_id) for run in runs]
    assert [run and run.status for run in stored] == [dg.DagsterRunStatus.CANCELED, done, created, created]


def test_run_over_a_whole_range_names_no_shards() -> None:
    tags = range_tags(CAPTIONS, ["a", "b"], ["a", "b"], "now")
    assert tags == {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"}


def test_run_over_a_part_of_a_range_names_its_shards() -> None:
    tags = range_tags(CAPTIONS, ["a", "b", "c"], ["a", "c"], "now")
    assert requested_shards(tags, ["a", "b", "c"]) == ["a", "c"]


def test_processes_that_mirror_a_steps_output_do_not_receive_ctrl_c(tmp_path: Path) -> None:
    isolate_log_processes()
    with (tmp_path / "mirror").open("w") as mirror, execute_posix_tail(str(tmp_path / "output"), mirror) as processes:
        assert [os.getpgid(process) for process in processes] == list(processes)
