"""Tests of Dagster's and dg's own commands in a project folder. They need no engine, but seconds."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef

from tests.scaffold.harness import make, run

pytestmark = pytest.mark.engine


def test_dg_loads_the_definitions_with_the_settings_of_the_folder(tmp_path: Path) -> None:
    make(tmp_path)
    with (tmp_path / ".env").open("a") as env:
        env.write("CAPTION_PROJECT=north\n")
    checked = run(tmp_path, "dg", "check", "defs")
    assert checked.returncode == 0, checked.stderr
    listed = run(tmp_path, "dg", "list", "defs", "--json")
    assert '"north/stage2_captions"' in listed.stdout, listed.stderr


def test_dg_and_dagster_record_in_the_instance_of_the_folder(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "shards" / "my-shard").mkdir()
    (tmp_path / "shards" / "my-shard" / "clip.mp4").write_bytes(b"not a video")
    launched = run(tmp_path, "dg", "launch", "--assets", "shard_index")
    assert launched.returncode == 0, launched.stderr
    again = run(
        tmp_path, "dagster", "asset", "materialize", "-m", "caption_assets.definitions", "--select", "shard_index"
    )
    assert again.returncode == 0, again.stderr
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path / ".dagster"))) as instance:
        assert list(instance.get_dynamic_partitions("shards")) == ["my-shard"]
        assert instance.get_runs_count() == 2
