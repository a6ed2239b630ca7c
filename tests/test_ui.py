"""Tests of Dagster's web UI with the project's definitions, in headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.dagster_ui import DagsterUI
from tests.processes import free_port, wait_until

pytestmark = pytest.mark.browser

REPOSITORY = Path(__file__).parent.parent
GROUPS = ["source", "model", "captions"]
ASSETS = ["shards", "shard_index", "model_weights", "clip_manifest", "stage1_captions", "stage2_captions"]


@pytest.fixture
def ui(tmp_path: Path) -> Iterator[str]:
    """The address of a webserver with an empty root."""
    port = free_port()
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    environment = environment_of(tmp_path)
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen([*command, "-m", "caption_assets.definitions"], cwd=tmp_path, env=environment)
    try:
        ui = DagsterUI(f"http://127.0.0.1:{port}")
        wait_until(lambda: ui.responds() or server.poll() is not None, 120, "the UI responds")
        assert server.poll() is None, "the webserver exited"
        yield ui.url
    finally:
        server.terminate()
        server.wait()


def environment_of(folder: Path) -> dict[str, str]:
    """Environment of a project in a folder."""
    return {**os.environ, "DAGSTER_HOME": str(folder), "CAPTION_ROOT": str(folder / "root")}


def materialize(folder: Path, *arguments: str) -> int:
    """Exit status of a command-line run of the same project."""
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "caption_assets.definitions", "--select"]
    return subprocess.run([*command, *arguments], cwd=folder, env=environment_of(folder), timeout=200).returncode


@pytest.mark.representative
def test_asset_graph_shows_all_groups_and_assets(ui: str, page: Page) -> None:
    page.goto(f"{ui}/asset-groups")
    for group in GROUPS:
        expect(page.get_by_text(re.compile(rf"^{group}$")).first).to_be_visible(timeout=60_000)
    page.goto(f"{ui}/asset-groups?expanded={','.join(f'global@global:{group}' for group in GROUPS)}")
    for asset in ASSETS:
        expect(page.get_by_text(re.compile(rf"^{asset}$")).first).to_be_visible(timeout=60_000)
    if picture := os.environ.get("ASSET_GRAPH_PICTURE"):
        page.screenshot(path=picture)


def test_ui_shows_registered_shards_and_the_cause_of_a_failed_manifest(ui: str, page: Page, tmp_path: Path) -> None:
    shard = tmp_path / "root" / "shards" / "broken"
    shard.mkdir(parents=True)
    (shard / "film.mp4").write_bytes(b"no film")
    assert materialize(tmp_path, "shard_index") == 0
    assert materialize(tmp_path, "clip_manifest", "--partition", "broken") != 0

    page.goto(f"{ui}/assets/shards?view=partitions")
    expect(page.get_by_text("Materialized (1)")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Missing (0)")).to_be_visible()
    page.goto(f"{ui}/assets/clip_manifest?view=events")
    expect(page.get_by_text("1 of 1 clips are unreadable").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("clip_manifest/shard=broken/manifest.parquet").first).to_be_visible()
    expect(page.get_by_text("film.mp4").first).to_be_visible()
