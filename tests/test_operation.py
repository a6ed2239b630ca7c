"""Tests of the project in operation, as `make dev` runs it: daemon, sensors, schedule and UI, with a growing source."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from caption_assets.captioning.recipe_file import built_in
from caption_assets.checks.asset_checks import checks_of
from tests.dagster_ui import DagsterUI
from tests.processes import free_port, wait_until
from tests.stages import STAGE2

REPOSITORY = Path(__file__).parent.parent
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

SECONDS = 420
"""Timeout of each step: a run starts within a minute, its engine within another one."""

PARTITIONS = """query ($path: [String!]!) { assetNodeOrError(assetKey: {path: $path}) { ... on AssetNode {
    assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } }
    staleStatusByPartition } } }"""
RUNS = """{ runsOrError { ... on Runs { results { status assetSelection { path } tags { key value } } } } }"""
TICKS = """{ schedulesOrError(repositorySelector:
    {repositoryName: "__repository__", repositoryLocationName: "caption_assets.definitions"})
    { ... on Schedules { results { scheduleState { ticks(limit: 1) { skipReason } } } } } }"""


@dataclass(frozen=True)
class RunningProject(DagsterUI):
    """A running project: its UI and its root."""

    root: Path

    def partitions(self, asset: str) -> dict[str, list[str]]:
        """Partitions of an asset by their status in the UI."""
        return dict(self.query(PARTITIONS, path=[asset])["assetNodeOrError"]["assetPartitionStatuses"])

    def runs(self, asset: str, shard: str) -> list[str]:
        """Statuses of an asset's runs over a range that begins or ends with a shard."""
        return [
            run["status"]
            for run in self.query(RUNS)["runsOrError"]["results"]
            if {"path": [asset]} in (run["assetSelection"] or [])
            and shard in [tag["value"] for tag in run["tags"] if "partition" in tag["key"]]
        ]

    def last_tick(self) -> str:
        """Message of the schedule's last tick."""
        [schedule] = self.query(TICKS)["schedulesOrError"]["results"]
        ticks = schedule["scheduleState"]["ticks"]
        return str(ticks[0]["skipReason"]) if ticks else ""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProject]:
    """A project with an empty source. Sensors run every few seconds, the schedule every minute."""
    home = tmp_path_factory.mktemp("operation")
    root = home / "root"
    (root / "shards").mkdir(parents=True)
    shutil.copy(REPOSITORY / "dagster.yaml", home)
    port, files = free_port(), free_port()
    settings = {
        "CAPTION_ROOT": str(root),
        "CAPTION_CACHE": str(home / "cache"),
        "CAPTION_AUTOMATE": "1",
        "CAPTION_SENSOR_INTERVAL_SECONDS": "5",
        "CAPTION_SHARD_QUIET_MINUTES": "0.05",
        "CAPTION_BACKFILL_CRON": "* * * * *",
        "CAPTION_SHARD_ATTEMPTS": "2",
        "CAPTION_PREVIEWS": "1",
        "CAPTION_LINK_URL": f"http://127.0.0.1:{files}",
    }
    dagster = ["-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port), "-m", "caption_assets.definitions"]
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**os.environ, "DAGSTER_HOME": str(home), **settings},
            start_new_session=True,
        )
        for folder, command in (
            (home, dagster),
            (root, ["-m", "http.server", str(files), "--bind", "127.0.0.1"]),
        )
    ]
    try:
        project = RunningProject(f"http://127.0.0.1:{port}", root)
        wait_until(project.responds, SECONDS, "the UI responds")
        yield project
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(60)


def add_shard(project: RunningProject, sample_data: Path, shard: str, *clips: str) -> None:
    """Add a shard to the source."""
    folder = project.root / "shards" / shard
    folder.mkdir()
    for clip in clips:
        shutil.copy(sample_data / "shards" / "sample-folder" / clip, folder)


def test_new_shard_is_captioned_and_corrupt_one_is_not_retried(project: RunningProject, sample_data: Path) -> None:
    add_shard(project, sample_data, "street", "clip-00.webm", "clip-01.webm")
    add_shard(project, sample_data, "broken")
    (project.root / "shards" / "broken" / "film.mp4").write_bytes(b"no film")
    wait_until(lambda: "street" in project.partitions("stage2_captions")["materializedPartitions"], SECONDS, interval=1)
    wait_until(lambda: "1 are not retried after 2 runs" in project.last_tick(), SECONDS, interval=1)
    assert project.runs("clip_manifest", "broken") == ["FAILURE", "FAILURE"]
    assert project.partitions("clip_manifest") == {"materializedPartitions": ["street"], "failedPartitions": ["broken"]}
    assert project.runs("stage2_captions", "street") == ["SUCCESS"]


def test_shard_is_materialized_and_inspected_in_the_ui(project: RunningProject, sample_data: Path, page: Page) -> None:
    wait_until(lambda: "street" in project.partitions("stage2_captions")["materializedPartitions"], SECONDS, interval=1)
    address = f"{project.url}/assets/stage2_captions?view=partitions&partition=street"
    page.set_viewport_size({"width": 1500, "height": 1000})
    page.goto(address)
    page.get_by_role("button", name="Materialize").first.click()
    expect(page.get_by_text("Launch runs to materialize stage2_captions")).to_be_visible(timeout=60_000)
    screenshot(page, "materialize")
    page.get_by_role("button", name="Launch 1 run").click()
    wait_until(lambda: project.runs("stage2_captions", "street").count("SUCCESS") == 2, SECONDS, interval=1)

    page.goto(address)
    expect(page.get_by_text("rows_reused")).to_be_visible(timeout=60_000)
    screenshot(page, "metadata")
    with page.expect_popup() as gallery:
        page.get_by_role("link", name="gallery/street/index.html").click()
    expect(gallery.value.get_by_text("clip-00.webm")).to_be_visible(timeout=60_000)
    expect(gallery.value.get_by_role("img").first).to_be_visible()
    screenshot(gallery.value, "gallery")

    page.goto(f"{project.url}/assets/stage2_captions?view=checks")
    for check in checks_of(built_in("sample"), STAGE2):
        expect(page.get_by_text(check.name).first).to_be_visible(timeout=60_000)
    screenshot(page, "checks")


def screenshot(page: Page, name: str) -> None:
    """Save a screenshot, if OPERATION_PICTURES names a folder."""
    if folder := os.environ.get("OPERATION_PICTURES"):
        page.screenshot(path=f"{folder}/{name}.png")
