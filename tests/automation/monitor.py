"""The sensor that ends dead runs, one look at a time."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg

from caption_assets.automation.dead_runs import LOOK_SECONDS, build_dead_runs
from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.store.heartbeat import FOLDER
from caption_assets.store.root import Root


class Monitor:
    """A root, an instance, and looks of the sensor at them."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.settings = Settings(root=str(folder))
        self.root = Root.open(str(folder))
        self.instance = instance
        self.cursor: str | None = None

    def run(self, status: dg.DagsterRunStatus, *, heartbeat: bytes | None = None, **tags: str) -> str:
        """A run in a state; ``heartbeat`` is what its process, which is gone, has left in the root."""
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

    def look(self, seconds: float = LOOK_SECONDS) -> None:
        """One look, so many seconds after the last."""
        if self.cursor:
            cursor = json.loads(self.cursor)
            self.cursor = json.dumps({**cursor, "at": cursor["at"] - seconds})
        with dg.build_sensor_context(self.instance, cursor=self.cursor) as context:
            result = build_dead_runs(self.settings)(context, storage=build_storage(self.settings))
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor

    def watch(self, seconds: float) -> None:
        """Looks at the usual interval, over so much time."""
        self.look(0)
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.look()
