"""The sensors that export a shard's dataset: once the shard is captioned, and after people corrected its captions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from caption_assets.automation.shard_states import active_shards, read_states
from caption_assets.automation.status import sensor_status
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.private_dagster import PARTITION_NAME_TAG
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.resources import Storage
from caption_assets.settings import Settings
from caption_assets.store.corrections import PendingCorrections, pending_corrections

QUIET = timedelta(minutes=15)
"""Time without a new decision on a shard after which its corrections are exported. Reviewers save one every few
seconds, and each export writes the shard's files anew."""
INTERVAL_SECONDS = 60
"""Interval between two ticks of the sensor ``corrections``, in seconds. A tick without any takes one listing."""


def build_export_sensor(settings: Settings) -> dg.AutomationConditionSensorDefinition:
    """The sensor. It evaluates the automation condition of the asset."""
    return dg.AutomationConditionSensorDefinition(
        "export",
        target=dg.AssetSelection.assets(Project.of(settings).dataset),
        default_status=sensor_status(settings),
    )


def build_correction_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor. It requests one run for the present corrections of a shard; the next one follows later ones."""
    project = Project.of(settings)

    @dg.sensor(
        name="corrections",
        target=dg.AssetSelection.assets(project.dataset),
        description=f"Exports shards with new corrections, {QUIET.seconds // 60} minutes after the latest.",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=sensor_status(settings),
    )
    def corrections(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult | dg.SkipReason:
        instance = context.instance
        with as_dagster_failure():
            check_claim(instance, project, storage)
            root = storage.root_to_read()
            pending = pending_corrections(root)
            if not pending:
                return dg.SkipReason("all corrections are exported")
            captioned = read_states(instance, project, root).captioned - active_shards(instance, project)
        now = datetime.now(UTC)
        requests = [
            # A tag, because Dagster resolves a ``partition_key`` only where the instance's partitions are loaded.
            dg.RunRequest(f"{shard}-{one.version}", asset_selection=[project.dataset], tags={PARTITION_NAME_TAG: shard})
            for shard, one in pending.items()
            if shard in captioned and _is_quiet(one, now)
        ]
        waiting = len(pending) - len(requests)
        return dg.SensorResult(requests) if requests else dg.SkipReason(f"{waiting} shards are reviewed or captioned")

    return corrections


def _is_quiet(pending: PendingCorrections, now: datetime) -> bool:
    return pending.latest is None or now - pending.latest >= QUIET
