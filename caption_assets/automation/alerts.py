"""Alerts on failed runs, and on shards that wait too long for their captions."""

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

CHECK = "captioned_in_time"
"""Name of the asset check."""
INTERVAL_SECONDS = 600
"""Interval between two searches for overdue shards, in seconds."""
NO_SHARD = json.dumps(None)
"""The cursor while no shard is overdue."""
REQUEST_TIMEOUT_SECONDS = 10.0
"""Timeout of a request to the webhook."""
MAX_CAUSE_CHARACTERS = 1000
"""Maximum length of a failure's cause in an alert, in characters."""


class AlertError(CaptionAssetsError):
    """An alert that could not be delivered."""


@dataclass(frozen=True, slots=True)
class Alerts:
    """Sends alerts to the daemon's log, and to CAPTION_ALERT_WEBHOOK if it is set."""

    settings: Settings

    def send(self, text: str, log: Logger) -> None:
        """Send an alert.

        Raises:
            AlertError: if the webhook cannot be reached, or answers with an error.
        """
        log.error(text)
        webhook = self.settings.alert_webhook
        if webhook is None:
            return
        body = json.dumps({"text": text}).encode()
        # Not with httpx, which logs the URL. It is a secret.
        request = urllib.request.Request(webhook.get_secret_value(), body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS):
                pass
        except urllib.error.HTTPError as error:
            raise AlertError(
                f"the URL in CAPTION_ALERT_WEBHOOK answers {error.code} {error.reason}: check that the webhook exists"
            ) from None
        except (OSError, ValueError) as error:  # its text may contain the URL
            raise AlertError(
                f"cannot reach the URL in CAPTION_ALERT_WEBHOOK ({type(error).__name__}): check the URL and the network"
            ) from None


def build_failure_alerts(settings: Settings) -> dg.SensorDefinition:
    """The sensor that sends an alert for each failed run."""
    alerts = Alerts(settings)

    @dg.run_failure_sensor(
        name="run_failures",
        description="Sends an alert for each failed run: to the daemon's log, and to CAPTION_ALERT_WEBHOOK if set.",
        default_status=sensor_status(settings),
    )
    def run_failures(context: dg.RunFailureSensorContext) -> None:
        causes = [cause for event in context.get_step_failure_events() if (cause := _cause(event))]
        cause = (causes or [context.failure_event.message or "unknown cause"])[0]
        with as_dagster_failure():
            alerts.send(f"Run {context.dagster_run.run_id} failed: {cause[:MAX_CAUSE_CHARACTERS]}", context.log)

    return run_failures


def _cause(event: dg.DagsterEvent) -> str | None:
    """The description of a step's failure, or its error."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    return data.error.message.strip() if data.error else None


@dataclass(frozen=True, slots=True)
class Overdue:
    """The shard that has waited longest for its captions, beyond the limit."""

    shard: str
    hours: float
    """Hours since it was added or changed."""
    limit: float
    """CAPTION_OVERDUE_HOURS."""

    def __str__(self) -> str:
        return (
            f"shard {self.shard!r} has waited {self.hours:.1f} h for its captions, longer than "
            f"CAPTION_OVERDUE_HOURS={self.limit:g}: check that the schedule 'backfill' is on, and why its runs fail"
        )


def find_overdue(instance: dg.DagsterInstance, settings: Settings) -> Overdue | None:
    """The shard that has waited longest, if it is overdue. A captioned shard does not wait.

    Raises:
        RootEmpty: if the root is empty, although tables are recorded.
        StoreError: if the root cannot be listed.
    """
    limit, project = settings.overdue_hours, Project.of(settings)
    if limit is None:
        return None
    states = read_states(instance, project, build_storage(settings).root_to_read())
    if (shard := states.oldest_waiting) is None:
        return None
    arrival = dg.AssetRecordsFilter(asset_key=project.shards, storage_ids=[states.changed.get(shard, 0)])
    for record in instance.fetch_observations(arrival, limit=1).records:  # none if the asset was wiped meanwhile
        hours = (time.time() - record.timestamp) / 3600
        return Overdue(shard, hours, limit) if hours > limit else None
    return None


def build_overdue_check(settings: Settings) -> dg.AssetChecksDefinition:
    """The check that no shard is overdue."""
    project = Project.of(settings)

    @dg.asset_check(
        asset=project.shards,
        name=CHECK,
        description="Each shard is captioned within CAPTION_OVERDUE_HOURS after it was added or changed.",
    )
    def captioned_in_time(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with as_dagster_failure():
            overdue = find_overdue(context.instance, settings)
        return dg.AssetCheckResult(
            passed=overdue is None, severity=dg.AssetCheckSeverity.WARN, description=str(overdue) if overdue else None
        )

    return captioned_in_time


def build_overdue_alerts(settings: Settings) -> dg.SensorDefinition:
    """The sensor that evaluates the check for overdue shards, and sends one alert for each of them."""
    project, alerts = Project.of(settings), Alerts(settings)

    @dg.sensor(
        name="overdue_shards",
        description="Sends an alert for a shard that has waited for its captions longer than CAPTION_OVERDUE_HOURS.",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=sensor_status(settings),
    )
    def overdue_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        with as_dagster_failure():
            overdue = find_overdue(context.instance, settings)
        found = json.dumps(overdue.shard if overdue else None)
        if found == (context.cursor or NO_SHARD):
            return dg.SensorResult(skip_reason=str(overdue) if overdue else "no shard is overdue")
        if overdue:
            with as_dagster_failure():
                alerts.send(str(overdue), context.log)
        evaluation = dg.AssetCheckEvaluation(
            asset_key=project.shards,
            check_name=CHECK,
            passed=overdue is None,
            severity=dg.AssetCheckSeverity.WARN,
            description=str(overdue) if overdue else None,
        )
        return dg.SensorResult(asset_events=[evaluation], cursor=found)

    return overdue_shards
