"""Runs of a command: executed in this process on the instance of DAGSTER_HOME, so that the UI shows them as any other.

Dagster's own command materializes one partition, or a range if all assets have the policy ``single_run``. Its function
``execute_job`` has neither limit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import ERROR, WARNING
from uuid import uuid4

import dagster as dg

from caption_assets.automation.shard_states import UNFINISHED
from caption_assets.dagster_lib.private_dagster import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    HIDDEN_TAG_PREFIX,
    PARTITION_NAME_TAG,
    RunFailureReason,
    asset_job,
    isolate_log_processes,
)
from caption_assets.dagster_lib.run_request import request_tags

COMMAND_ID_TAG = f"{HIDDEN_TAG_PREFIX}caption_assets.command_id"
"""Tag of all runs of one command."""
COMMAND_ID = uuid4().hex
"""Id of this process's command."""
STOPPED = "stopped by a signal; finished rows are kept"
REQUEST = "command"
"""Version of the requests of a command. Their tags are hidden ones, which the schedule does not count."""


def range_tags(asset: dg.AssetKey, shards: Sequence[str], requested: Collection[str], time: str) -> dict[str, str]:
    """The tags of a run over a range of shards, which processes only those that are requested.

    Args:
        asset: the last asset that the run materializes.
        shards: all shards of the range, in order of registration.
        requested: the shards to process.
        time: time of the command.
    """
    tags = {ASSET_PARTITION_RANGE_START_TAG: shards[0], ASSET_PARTITION_RANGE_END_TAG: shards[-1]}
    if len(requested) < len(shards):
        requests = request_tags(asset, dict.fromkeys(requested, REQUEST), time)
        tags |= {f"{HIDDEN_TAG_PREFIX}{name}": value for name, value in requests.items()}
    return tags


def partition_tags(shard: str) -> dict[str, str]:
    """The tags of a run over one shard."""
    return {PARTITION_NAME_TAG: shard}


@dataclass(frozen=True)
class FinishedRun:
    """A run of this command that has ended, with what its log says."""

    run_id: str
    success: bool
    logs: Sequence[dg.EventLogEntry]

    @cached_property
    def is_interrupted(self) -> bool:
        """Whether a signal ended the run."""
        ends = [event for event in self._events if event.event_type is dg.DagsterEventType.RUN_FAILURE]
        return any(end.job_failure_data.failure_reason is RunFailureReason.UNEXPECTED_TERMINATION for end in ends)

    @cached_property
    def warnings(self) -> list[str]:
        """The messages of warnings, and of checks that did not pass and block nothing."""
        logged = [entry.user_message for entry in self._messages if int(entry.level) == WARNING]
        checks = [
            event.asset_check_evaluation_data
            for event in self._events
            if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
        ]
        return logged + [
            f"{check.partition}: {check.description} (check {check.check_name} of {check.asset_key.to_user_string()})"
            for check in checks
            if not check.passed and check.severity is dg.AssetCheckSeverity.WARN
        ]

    @cached_property
    def failure(self) -> str | None:
        """The reason of the first step that failed; None if none did."""
        for event in self._events:
            if event.event_type is dg.DagsterEventType.STEP_FAILURE:
                data = event.step_failure_data
                return str((data.user_failure_data and data.user_failure_data.description) or data.error_display_string)
        return None

    def reasons(self, shards: Collection[str]) -> dict[str, str]:
        """The reasons why shards failed, as the run has logged them, in the form ``shard: reason``."""
        errors = [entry.user_message for entry in self._messages if int(entry.level) >= ERROR]
        parts = [message.partition(": ") for message in (*errors, self.failure or "")]
        return {shard: reason for shard, _, reason in reversed(parts) if shard in shards}

    def materialized(self, asset: dg.AssetKey) -> dict[str, Mapping[str, dg.MetadataValue]]:
        """The metadata of an asset's materializations, by shard."""
        made = [
            event.step_materialization_data.materialization for event in self._events if event.is_step_materialization
        ]
        return {str(one.partition): one.metadata for one in made if one.asset_key == asset}

    @property
    def _messages(self) -> list[dg.EventLogEntry]:
        return [entry for entry in self.logs if not entry.is_dagster_event]

    @property
    def _events(self) -> list[dg.DagsterEvent]:
        return [entry.get_dagster_event() for entry in self.logs if entry.is_dagster_event]


def launch(instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey], tags: Mapping[str, str]) -> FinishedRun:
    """Execute a run in this process until its end.

    Args:
        instance: stores the run and its events.
        assets: the assets to materialize.
        tags: tags of the run, such as those of ``range_tags``.
    """
    isolate_log_processes()
    job = asset_job("caption_assets.definitions", "defs")
    try:
        tags = {**tags, COMMAND_ID_TAG: COMMAND_ID}
        result = dg.execute_job(job, instance=instance, asset_selection=assets, tags=tags)
    except BaseException:
        cancel_unfinished(instance)
        raise
    run = FinishedRun(result.run_id, result.success, instance.all_logs(result.run_id))
    if run.is_interrupted and (stored := instance.get_run_by_id(run.run_id)):
        instance.report_run_canceled(stored, STOPPED)  # Dagster counts it as a failure
    return run


def cancel_unfinished(instance: dg.DagsterInstance) -> None:
    """Mark runs of this command that have not ended as canceled: Ctrl-C may arrive while Dagster creates a run."""
    for run in instance.get_runs(dg.RunsFilter(tags={COMMAND_ID_TAG: COMMAND_ID}, statuses=UNFINISHED)):
        instance.report_run_canceled(run, STOPPED)
