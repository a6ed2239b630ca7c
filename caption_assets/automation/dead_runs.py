"""The sensor that ends runs whose process is gone, as their heartbeats show.

Dagster's own monitoring ends runs that never start, that never finish being canceled, or whose launcher reports a lost
process. The local launcher reports none, and a command-line run has no launcher: such a run would keep its place in the
queue, and its shards, for ever.
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
from caption_assets.store.heartbeat import Pulse, list_heartbeats, read_heartbeat, remove_heartbeat
from caption_assets.store.root import Root

ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
"""Statuses of runs that have a process."""
LOOK_SECONDS = 15
"""Interval between two looks at the heartbeats; each is one listing, and none where no run is in progress."""
PATIENCE = 1.5
"""A run is dead after this many times the seconds in which its heartbeat expires, without a renewal."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """What the looks so far have seen of a run's heartbeat."""

    written: str
    """As the store tells it; compared, and not read as a time."""
    process: str
    expires: float
    """Seconds after which it has expired without a renewal."""
    seconds: float = 0.0
    """Time for which it was seen unchanged. Between two looks at most half of ``expires`` counts."""

    @property
    def is_dead(self) -> bool:
        """Whether the run's process has gone."""
        return self.seconds >= PATIENCE * self.expires

    def look(self, written: str, passed: float) -> Unchanged:
        """What a further look sees.

        Only time between looks counts, so that no clock of another machine matters. After a store that did not answer,
        or a machine that slept, no run looks dead before it has had the time to renew its heartbeat.

        Args:
            written: as the store tells it now.
            passed: seconds since the last look.
        """
        if written != self.written:
            return replace(self, written=written, seconds=0.0)
        return replace(self, seconds=self.seconds + min(max(passed, 0.0), self.expires / 2))


@dataclass(frozen=True, slots=True)
class Looks:
    """What the sensor remembers from one tick to the next."""

    at: float
    """Time of the last look, in seconds since 1970, by the clock of the sensor's machine."""
    runs: Mapping[str, Unchanged]
    """By run id."""

    @classmethod
    def parse(cls, cursor: str | None, now: float) -> Looks:
        """The sensor's cursor; of none, that nothing was seen yet."""
        if cursor is None:
            return cls(now, {})
        found = json.loads(cursor)
        return cls(found["at"], {run: Unchanged(**seen) for run, seen in found["runs"].items()})

    def __str__(self) -> str:
        return json.dumps({"at": self.at, "runs": {run: asdict(seen) for run, seen in self.runs.items()}})


def build_dead_runs(settings: Settings) -> dg.SensorDefinition:
    """The sensor over the runs that write below the root of ``settings``. It runs from the start, automation or not."""

    @dg.sensor(
        name="dead_runs",
        description="Ends runs whose process is gone: those whose heartbeat in the root is not renewed any more.",
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def dead_runs(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult:
        instance, now = context.instance, time.time()
        runs = {run.run_id: run for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE))}
        if not runs:
            return dg.SensorResult(skip_reason="no run is in progress", cursor=str(Looks(now, {})))
        with as_dagster_failure():
            root = storage.root_to_read()
            written = list_heartbeats(root)
            ours = {run: when for run, when in written.items() if run in runs}
            seen = _look(root, ours, Looks.parse(context.cursor, now), now, settings)
            dead = [run for run, heartbeat in seen.items() if heartbeat.is_dead]
            for run in dead:
                end_run(instance, run, seen.pop(run))
                remove_heartbeat(root, run)
            _remove_left(instance, root, written.keys() - runs.keys())
        living = f"{len(seen)} of {len(runs)} runs in progress have a heartbeat"
        ended = f"; ended {', '.join(dead)}, whose heartbeats have expired" if dead else ""
        return dg.SensorResult(skip_reason=living + ended, cursor=str(Looks(now, seen)))

    return dead_runs


def _look(
    root: Root, written: Mapping[str, str], before: Looks, now: float, settings: Settings
) -> dict[str, Unchanged]:
    """What is known of each run's heartbeat after this look.

    Raises:
        StoreError: if a heartbeat cannot be read.
    """
    seen = {}
    for run, when in written.items():
        if known := before.runs.get(run):
            seen[run] = known.look(when, now - before.at)
        else:
            pulse = read_heartbeat(root, run) or Pulse("an unknown process", settings.lease_seconds)
            seen[run] = Unchanged(when, pulse.process, pulse.seconds)
    return seen


def end_run(instance: dg.DagsterInstance, run_id: str, heartbeat: Unchanged) -> None:
    """Report a run as failed, or as canceled if it was being canceled, and free its slots of pools."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:  # since it was listed
        return
    message = (
        f"The process of this run is gone ({heartbeat.process}): its heartbeat, which is renewed every "
        f"{heartbeat.expires / 3:.0f} s, was not for {heartbeat.seconds:.0f} s. It was killed, or its machine stopped. "
        "What it had written to checkpoints is kept: launch it again to continue."
    )
    if run.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message)
    else:
        instance.report_run_failed(run, message)
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def _remove_left(instance: dg.DagsterInstance, root: Root, left: set[str]) -> None:
    """Remove heartbeats of runs that are over: their processes were killed, and Dagster's monitoring has ended them.

    Those of runs that this instance does not know stay: another one may write to the same root.
    """
    for run in instance.get_runs(dg.RunsFilter(run_ids=list(left))) if left else ():
        if run.is_finished:
            remove_heartbeat(root, run.run_id)
