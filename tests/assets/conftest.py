from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from caption_assets.dagster_lib.project import Project
from caption_assets.definitions import build_definitions
from caption_assets.settings import Settings


class ProjectHarness:
    """A root, a Dagster instance and their definitions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.instance = dg.DagsterInstance.ephemeral()

    def run(
        self,
        *assets: str,
        partition: str | None = None,
        partitions: tuple[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        checks: Sequence[dg.AssetCheckKey] = (),
        run_id: str | None = None,
        **settings: object,
    ) -> dg.ExecuteInProcessResult:
        """Materialize assets as the UI does. A failure is returned, not raised.

        Args:
            assets: the selected assets.
            partition: a shard.
            partitions: first and last of several shards.
            tags: tags of the run.
            checks: the selected checks, if no assets are selected.
            run_id: the run's id.
            settings: settings that differ from the defaults.
        """
        folders = {"root": str(self.root), "cache": str(self.folder / "cache")}
        # One worker: starting the default eight takes 2 s of CPU time, and probing a sample shard 0.1 s.
        values = {**folders, "decode_workers": 1, "recipe": "general", **settings}
        validated = Settings(**values)  # type: ignore[arg-type]
        definitions, names = build_definitions(validated), Project.of(validated)
        ends = dict(
            zip((ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG), partitions or (), strict=False)
        )
        job = definitions.get_implicit_global_asset_job_def()
        if checks:
            job = job.get_subset(asset_selection=set(), asset_check_selection=set(checks))
        return job.execute_in_process(
            asset_selection=[names.key(asset) for asset in assets] or None,
            partition_key=partition,
            tags={**ends, **(tags or {})},
            instance=self.instance,
            raise_on_error=False,
            run_id=run_id,
        )

    def failure(self, *assets: str, **options: object) -> str:
        """Message of a failed run of ``assets``."""
        result = self.run(*assets, **options)  # type: ignore[arg-type]
        assert not result.success
        [event] = [event for event in result.all_events if event.is_step_failure]
        assert event.step_failure_data.user_failure_data is not None, event.step_failure_data.error
        return str(event.step_failure_data.user_failure_data.description)


@pytest.fixture
def project(tmp_path: Path, sample_data: Path) -> ProjectHarness:
    """A project with the sample shards."""
    shutil.copytree(sample_data / "shards", tmp_path / "root" / "shards")
    return ProjectHarness(tmp_path)
