"""Harness for tests of the sensor that ends dead runs."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg

from caption_assets.automation.dead_runs import INTERVAL_SECONDS, build_dead_runs
from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.store.heartbeat import FOLDER
from caption_assets.store.root import Root


class DeadRunsHarness:
    """A root, a Dagster instance, and ticks of the sensor."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.settings = Settings(root=str(folder))
        self.root = Root.open(str(folder))
        self.instance = instance
        self.cursor: str | None = None

    def run(self, status: dg.DagsterRunStatus, *, heartbeat: bytes | None = None, **tags: str) -> str:
        """Add a run with a status; returns its id. ``heartbeat`` is the record that its killed process left."""
        run = self.instance.add_run(dg.DagsterRun(job_name="j", status=status, tags=tags))
        if heartbeat is not None:
            self.root.write(f"{FOLDER}/{run.run_id}", heartbeat)
        return run.run_id

    def status(self, run: str) -> dg.DagsterRunStatus:
        found = self.instance.get_run_by_id(run)
        assert found is not None
        return found.status

    def message(self, run: str, kind: dg.DagsterEventType) -> str:
        [event] = self.instance.all_logs(run, of_type=kind)
        assert event.dagster_event is not None
        return str(event.dagster_event.message)

    def tick(self, seconds: float = INTERVAL_SECONDS) -> None:
        """Run one tick, ``seconds`` after the last."""
        if self.cursor:
            cursor = json.loads(self.cursor)
            self.cursor = json.dumps({**cursor, "at": cursor["at"] - seconds})
        with dg.build_sensor_context(self.instance, cursor=self.cursor) as context:
            result = build_dead_runs(self.settings)(context, storage=build_storage(self.settings))
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor

    def tick_for(self, seconds: float) -> None:
        """Run ticks at the sensor's interval, for ``seconds``."""
        self.tick(0)
        for _ in range(round(seconds / INTERVAL_SECONDS)):
            self.tick()
