"""Alerts: runs that failed, and shards that wait too long for their captions."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from logging import Logger

import dagster as dg

from caption_assets.automation.shard_states import read_states
from caption_assets.automation.status import sensor_status
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.project import Project
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import build_storage
from caption_assets.settings import Settings

OVERDUE = "captioned_in_time"
LOOK_SECONDS = 600
"""How often it is looked for shards that wait too long."""
NONE = json.dumps(None)
"""The cursor where no shard waits too long."""
SEND_SECONDS = 10.0
LONGEST_REASON = 1000
"""Characters of a run's failure that an alert repeats."""


class AlertError(CaptionAssetsError):
    """An alert that did not reach its target."""


@dataclass(frozen=True, slots=True)
class Alerts:
    """Where alerts go: into the daemon's log, and to a Slack webhook if there is one."""

    settings: Settings

    def send(self, text: str, log: Logger) -> None:
        """Tell people.

        Raises:
            AlertError: if the webhook does not take it.
        """
        log.error(text)
        webhook = self.settings.alert_webhook
        if webhook is None:
            return
        body = json.dumps({"text": text}).encode()
        request = urllib.request.Request(webhook.get_secret_value(), body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SEND_SECONDS):
                pass
        except urllib.error.HTTPError as error:
            raise AlertError(
                f"the address in CAPTION_ALERT_WEBHOOK answers {error.code} {error.reason}: check that there is such a "
                "webhook"
            ) from None
        except (OSError, ValueError) as error:  # whose text may repeat the address
            raise AlertError(
                f"the address in CAPTION_ALERT_WEBHOOK cannot be reached ({type(error).__name__}): check it, and that "
                "this machine may reach it"
            ) from None


def build_failure_alerts(settings: Settings) -> dg.SensorDefinition:
    """The sensor that tells of runs that failed."""
    alerts = Alerts(settings)

    @dg.run_failure_sensor(
        name="run_failures",
        description="Tells of each run that failed: in the daemon's log, or to CAPTION_ALERT_WEBHOOK.",
        default_status=sensor_status(settings),
    )
    def run_failures(context: dg.RunFailureSensorContext) -> None:
        causes = [cause for event in context.get_step_failure_events() if (cause := _cause(event))]
        cause = (causes or [context.failure_event.message or "no reason was given"])[0]
        with as_dagster_failure():
            alerts.send(f"Run {context.dagster_run.run_id} failed: {cause[:LONGEST_REASON]}", context.log)

    return run_failures


def _cause(event: dg.DagsterEvent) -> str | None:
    """The step's own words, or the error that ended it."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    return data.error.message.strip() if data.error else None


@dataclass(frozen=True, slots=True)
class Overdue:
    """The shard that has waited longest for its captions, and too long."""

    shard: str
    hours: float
    """Since it came or changed."""
    limit: float

    def __str__(self) -> str:
        return (
            f"shard {self.shard!r} has waited {self.hours:.1f} h for its captions, longer than CAPTION_OVERDUE_HOURS = "
            f"{self.limit:g}: see whether the schedule 'backfill' runs, and why its runs fail"
        )


def find_overdue(instance: dg.DagsterInstance, settings: Settings) -> Overdue | None:
    """The shard that waits longest, if that is longer than the limit. A shard that is captioned never waits.

    Raises:
        RootEmpty: if the root is empty, and there are records of tables in it.
        StoreError: if the root cannot be listed.
    """
    limit, project = settings.overdue_hours, Project(settings.project)
    if limit is None:
        return None
    states = read_states(instance, project, build_storage(settings).root_to_read())
    if (shard := states.oldest_waiting) is None:
        return None
    came = dg.AssetRecordsFilter(asset_key=project.shards, storage_ids=[states.changed.get(shard, 0)])
    for record in instance.fetch_observations(came, limit=1).records:  # none if somebody has wiped the asset meanwhile
        hours = (time.time() - record.timestamp) / 3600
        return Overdue(shard, hours, limit) if hours > limit else None
    return None


def build_overdue_check(settings: Settings) -> dg.AssetChecksDefinition:
    """The check that no shard waits too long."""
    project = Project(settings.project)

    @dg.asset_check(
        asset=project.shards,
        name=OVERDUE,
        description="No shard waits for its captions longer than CAPTION_OVERDUE_HOURS since it came or changed.",
    )
    def captioned_in_time(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with as_dagster_failure():
            overdue = find_overdue(context.instance, settings)
        return dg.AssetCheckResult(
            passed=overdue is None, severity=dg.AssetCheckSeverity.WARN, description=str(overdue) if overdue else None
        )

    return captioned_in_time


def build_overdue_alerts(settings: Settings) -> dg.SensorDefinition:
    """The sensor that makes that check, and tells of each shard that is found once."""
    project, alerts = Project(settings.project), Alerts(settings)

    @dg.sensor(
        name="overdue_shards",
        description="Tells of shards that wait too long for their captions.",
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=sensor_status(settings),
    )
    def overdue_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        with as_dagster_failure():
            overdue = find_overdue(context.instance, settings)
        found = json.dumps(overdue.shard if overdue else None)
        if found == (context.cursor or NONE):
            return dg.SensorResult(skip_reason=str(overdue) if overdue else "no shard waits too long")
        if overdue:
            with as_dagster_failure():
                alerts.send(str(overdue), context.log)
        evaluation = dg.AssetCheckEvaluation(
            asset_key=project.shards,
            check_name=OVERDUE,
            passed=overdue is None,
            severity=dg.AssetCheckSeverity.WARN,
            description=str(overdue) if overdue else None,
        )
        return dg.SensorResult(asset_events=[evaluation], cursor=found)

    return overdue_shards
