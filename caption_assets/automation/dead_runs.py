"""The sensor that ends runs whose process has exited without reporting it, by their heartbeats.

Dagster's monitoring ends runs that do not start, runs that are not canceled in time, and runs with a launcher that
reports a lost process. The local launcher does not report it, and a command-line run has no launcher. Such a run would
block the queue and its shards forever.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import dagster as dg

from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.resources import Storage
from caption_assets.settings import Settings
from caption_assets.store.heartbeat import HeartbeatRecord, list_heartbeats, read_heartbeat, remove_heartbeat
from caption_assets.store.root import Root

ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
"""Statuses of runs with a process."""
INTERVAL_SECONDS = 15
"""Interval between two observations of the heartbeats, in seconds. Each takes one listing while a run is active."""
EXPIRY_FACTOR = 1.5
"""A run is ended if its heartbeat was not renewed for its expiry time, multiplied by this factor."""


@dataclass(frozen=True, slots=True)
class HeartbeatAge:
    """The time for which a run's heartbeat was observed unchanged."""

    written: str
    """Modification time as the store gives it. It is only compared with others."""
    process: str
    """Host and process id."""
    expires: float
    """Expiry time, in seconds."""
    seconds: float = 0.0
    """Time observed unchanged. Between two observations, at most half of ``expires`` counts."""

    @property
    def is_dead(self) -> bool:
        """Whether the run's process has exited."""
        return self.seconds >= EXPIRY_FACTOR * self.expires

    def observe(self, written: str, elapsed: float) -> HeartbeatAge:
        """The age after a further observation.

        Only time between observations counts, so that other machines' clocks do not matter. After an outage of the
        store or a suspended machine, each run has time to renew its heartbeat before it is taken for dead.

        Args:
            written: present modification time.
            elapsed: seconds since the last observation.
        """
        if written != self.written:
            return replace(self, written=written, seconds=0.0)
        return replace(self, seconds=self.seconds + min(max(elapsed, 0.0), self.expires / 2))


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The sensor's cursor."""

    at: float
    """Time of the last observation, in seconds since 1970, by the clock of the sensor's machine."""
    runs: Mapping[str, HeartbeatAge]
    """Age of each heartbeat, by run id."""

    @classmethod
    def parse(cls, cursor: str | None, now: float) -> _Cursor:
        """Parse a cursor; without one, no heartbeat was observed yet."""
        if cursor is None:
            return cls(now, {})
        values = json.loads(cursor)
        return cls(values["at"], {run: HeartbeatAge(**age) for run, age in values["runs"].items()})

    def __str__(self) -> str:
        return json.dumps({"at": self.at, "runs": {run: asdict(age) for run, age in self.runs.items()}})


def build_dead_runs(settings: Settings) -> dg.SensorDefinition:
    """The sensor over the runs that write to CAPTION_ROOT. It is on by default, also without CAPTION_AUTOMATE."""

    @dg.sensor(
        name="dead_runs",
        description="Ends runs whose process has exited: those that have stopped renewing their heartbeat in the root.",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def dead_runs(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult:
        instance, now = context.instance, time.time()
        runs = {run.run_id: run for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE))}
        if not runs:
            return dg.SensorResult(skip_reason="no active runs", cursor=str(_Cursor(now, {})))
        with as_dagster_failure():
            root = storage.root_to_read()
            written = list_heartbeats(root)
            own = {run: when for run, when in written.items() if run in runs}
            ages = _observe(root, own, _Cursor.parse(context.cursor, now), now, settings)
            dead = [run for run, age in ages.items() if age.is_dead]
            for run in dead:
                end_run(instance, run, ages.pop(run))
                remove_heartbeat(root, run)
            _remove_finished(instance, root, written.keys() - runs.keys())
        renewed = f"{len(ages)} of {len(runs)} active runs have a heartbeat"
        ended = f"; ended {', '.join(dead)}: heartbeat expired" if dead else ""
        return dg.SensorResult(skip_reason=renewed + ended, cursor=str(_Cursor(now, ages)))

    return dead_runs


def _observe(
    root: Root, written: Mapping[str, str], before: _Cursor, now: float, settings: Settings
) -> dict[str, HeartbeatAge]:
    """The ages of the runs' heartbeats after this observation.

    Raises:
        StoreError: if a heartbeat cannot be read.
    """
    ages = {}
    for run, when in written.items():
        if age := before.runs.get(run):
            ages[run] = age.observe(when, now - before.at)
        else:
            record = read_heartbeat(root, run) or HeartbeatRecord("an unknown process", settings.lease_seconds)
            ages[run] = HeartbeatAge(when, record.process, record.seconds)
    return ages


def end_run(instance: dg.DagsterInstance, run_id: str, age: HeartbeatAge) -> None:
    """Report a run as failed, or as canceled if it was being canceled, and free its pool slots."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:  # since it was listed
        return
    message = (
        f"The process of this run ({age.process}) no longer renews its heartbeat: the interval is "
        f"{age.expires / 3:.0f} s, and the last renewal was {age.seconds:.0f} s ago. It was killed, or its machine "
        "stopped. Its checkpoints are kept: launch the run again to continue."
    )
    if run.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message)
    else:
        instance.report_run_failed(run, message)
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def _remove_finished(instance: dg.DagsterInstance, root: Root, run_ids: set[str]) -> None:
    """Remove heartbeats of finished runs: their processes were killed, and Dagster's monitoring has ended them.

    Heartbeats of unknown runs are kept: another instance may write to the same root.
    """
    for run in instance.get_runs(dg.RunsFilter(run_ids=list(run_ids))) if run_ids else ():
        if run.is_finished:
            remove_heartbeat(root, run.run_id)
