from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.definitions import build_definitions
from caption_assets.settings import Settings


class Project:
    """A root, an instance, and the definitions over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.instance = dg.DagsterInstance.ephemeral()

    def run(self, *assets: str, partition: str | None = None, **settings: object) -> dg.ExecuteInProcessResult:
        """Materialize assets as the UI would, failures reported and not raised."""
        chosen = {"root": str(self.root), "cache": str(self.folder / "cache"), **settings}
        definitions = build_definitions(Settings(**chosen))  # type: ignore[arg-type]
        return definitions.get_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            partition_key=partition,
            instance=self.instance,
            raise_on_error=False,
        )

    def failure(self, *assets: str, partition: str | None = None, **settings: object) -> str:
        """The message with which a run of ``assets`` fails."""
        result = self.run(*assets, partition=partition, **settings)
        assert not result.success
        [event] = [event for event in result.all_events if event.is_step_failure]
        assert event.step_failure_data.user_failure_data is not None, event.step_failure_data.error
        return str(event.step_failure_data.user_failure_data.description)


@pytest.fixture
def project(tmp_path: Path, sample_data: Path) -> Project:
    """The definitions over a root of the test's own that holds the sample shards."""
    shutil.copytree(sample_data / "shards", tmp_path / "root" / "shards")
    return Project(tmp_path)
