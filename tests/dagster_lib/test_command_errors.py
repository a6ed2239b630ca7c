from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

pytestmark = pytest.mark.fast


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a Dagster command in a project with the shard ``street``. Dagster's own warnings are off."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        instance.add_dynamic_partitions("shards", ["street"])
    environment = {**os.environ, "DAGSTER_HOME": str(home), "CAPTION_ROOT": str(folder / "root"), **settings}
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "asset", "materialize"]
    command += ["-m", "caption_assets.definitions", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_invalid_setting_is_its_message_alone(tmp_path: Path) -> None:
    process = run(tmp_path, "--select", "shard_index", CAPTION_MODLE="x")
    assert process.returncode == 1
    assert process.stderr == "Error: Unknown setting CAPTION_MODLE; did you mean CAPTION_MODEL? Rename or unset it\n"


def test_debug_level_shows_the_traceback(tmp_path: Path) -> None:
    process = run(tmp_path, "--select", "shard_index", CAPTION_LOG_LEVEL="debug", CAPTION_MODLE="x")
    assert process.returncode == 1
    assert "Traceback" in process.stderr


def test_unknown_shard_is_reported_with_similar_names(tmp_path: Path) -> None:
    process = run(tmp_path, "--select", "clip_manifest", "--partition", "stret")
    assert process.returncode == 1
    assert process.stderr.splitlines() == ["Error: Unknown shard 'stret'; did you mean street?"]


def test_failed_run_ends_with_its_reason(tmp_path: Path) -> None:
    process = run(tmp_path, "--select", "shard_index", CAPTION_SOURCE=str(tmp_path / "nowhere"))
    assert process.returncode == 1
    [failure, last] = process.stderr.splitlines()
    assert re.match(r"\d\d:\d\d:\d\d error: the source '\S+/nowhere' does not exist: ", failure)
    assert last == "Error: Materialization failed."
