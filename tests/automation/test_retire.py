from __future__ import annotations

import io
import sys
from pathlib import Path

import dagster as dg
import pyarrow.dataset as ds
import pytest

from caption_assets.automation.retire import RetireError, check, find_outputs, gpu_hours, removed_shards, retire
from caption_assets.automation.trash import restore
from caption_assets.dagster_lib.shard_events import observation
from caption_assets.store.lease import LeaseHeld, Leases
from caption_assets.store.root import Root
from caption_assets.store.trash import TrashError, list_entries
from tests.automation.conftest import AutomationHarness
from tests.cli import run_cli

pytestmark = pytest.mark.fast

TABLES = ("clip_manifest", "stage1_captions", "stage2_captions")
OTHER_OUTPUTS = (
    "gallery/a/index.html",
    "gallery/a/previews/1.jpg",
    "captioned_dataset/data/shard=a/index.json",
    "corrections/shard=a/compacted-1.parquet",
    "corrections/shard=a/20261129T230500000000-2.parquet",
    "_checkpoints/shard=a/000001-000000-stage1_captions.parquet",
)


@pytest.fixture
def captioned(harness: AutomationHarness) -> AutomationHarness:
    """Two captioned shards: ``a`` with all other outputs too, and ``ab``, whose name begins with ``a``."""
    harness.add("a", "ab")
    harness.run_sensor()
    harness.store_weights()
    for table in TABLES:
        harness.materialize(table, "a", "ab")
    for path in (*OTHER_OUTPUTS, "gallery/ab/index.html"):
        harness.root.write(path, path.encode())
    return harness


def contents(root: Root, *folders: str) -> dict[str, bytes]:
    """The outputs of shards in the root, without trash and leases."""
    searched = folders or (*TABLES, "gallery", "captioned_dataset", "corrections", "_checkpoints")
    found = {path for folder in searched for path in root.sizes(folder)}
    return {path: root.read(path) for path in found if "/lease-" not in path}


def remove_from_source(harness: AutomationHarness, shard: str) -> None:
    """Remove a shard from the source, and report it as the sensor does."""
    (harness.source / f"{shard}.jsonl").unlink()
    harness.instance.report_runless_asset_event(observation(harness.project, shard, "removed"))


def test_retired_shard_has_a_trash_entry_and_keeps_its_source(captioned: AutomationHarness) -> None:
    before = {path: data for path, data in contents(captioned.root).items() if "ab" not in path}
    retire(captioned.instance, captioned.project, captioned.root, "a")
    assert all("ab" in path for path in contents(captioned.root))
    assert find_outputs(captioned.root, captioned.project, "a").paths == []
    [entry] = list_entries(captioned.root)
    assert entry.sizes.keys() == before.keys()
    assert (captioned.source / "a.jsonl").exists()
    assert captioned.registered == ["ab"]


def test_restored_shard_is_captioned_as_before(captioned: AutomationHarness) -> None:
    before = contents(captioned.root)
    retire(captioned.instance, captioned.project, captioned.root, "a")
    restore(captioned.instance, captioned.settings, captioned.root, "a")
    assert contents(captioned.root) == before
    assert list_entries(captioned.root) == []
    assert sorted(captioned.registered) == ["a", "ab"]
    assert captioned.run_schedule() == "2 of 2 shards are captioned"


def test_retired_shard_still_in_the_source_is_captioned_again(captioned: AutomationHarness) -> None:
    retire(captioned.instance, captioned.project, captioned.root, "a")
    captioned.run_sensor()
    [request] = captioned.run_requests()
    assert request.asset_selection == [dg.AssetKey("clip_manifest")]
    captioned.materialize("clip_manifest", "a")
    [request] = captioned.run_requests()
    assert dg.AssetKey("stage2_captions") in (request.asset_selection or ())


def test_retiring_resets_the_number_of_attempts(captioned: AutomationHarness) -> None:
    for _ in range(captioned.settings.shard_attempts):
        retire(captioned.instance, captioned.project, captioned.root, "a")
        captioned.run_sensor()
        [request] = captioned.run_requests()
        captioned.launch(request, dg.DagsterRunStatus.SUCCESS)
        captioned.materialize("clip_manifest", "a")
        [request] = captioned.run_requests()
        captioned.launch(request, dg.DagsterRunStatus.SUCCESS)
        captioned.materialize("stage1_captions", "a")
        captioned.materialize("stage2_captions", "a")
    retire(captioned.instance, captioned.project, captioned.root, "a")
    captioned.run_sensor()
    assert len(captioned.run_requests()) == 1


def test_shard_retired_while_missing_is_captioned_on_return(captioned: AutomationHarness) -> None:
    remove_from_source(captioned, "a")
    retire(captioned.instance, captioned.project, captioned.root, "a")
    captioned.add("a")
    captioned.run_sensor()
    assert sorted(captioned.registered) == ["a", "ab"]
    [request] = captioned.run_requests()
    assert request.asset_selection == [dg.AssetKey("clip_manifest")]


def test_event_log_records_retired_tables_as_removed(captioned: AutomationHarness) -> None:
    retire(captioned.instance, captioned.project, captioned.root, "a")
    for table in TABLES:
        [record] = captioned.instance.fetch_materializations(
            dg.AssetRecordsFilter(captioned.project.key(table), asset_partitions=["a"]), limit=1
        ).records
        assert record.asset_materialization
        assert (record.asset_materialization.tags or {})["dagster/data_version"] == "removed"


def test_interrupted_retiring_can_be_repeated(captioned: AutomationHarness) -> None:
    before = contents(captioned.root)
    retire(captioned.instance, captioned.project, captioned.root, "a")
    [entry] = list_entries(captioned.root)
    captioned.instance.add_dynamic_partitions(captioned.project.partitions_name, ["a"])  # as if interrupted
    captioned.root.remove(f"{entry.folder}/_complete")
    captioned.root.move(f"{entry.folder}/{OTHER_OUTPUTS[0]}", OTHER_OUTPUTS[0])
    retire(captioned.instance, captioned.project, captioned.root, "a")
    restore(captioned.instance, captioned.settings, captioned.root, "a")
    assert contents(captioned.root) == before


def test_older_entry_is_restored_by_its_time(captioned: AutomationHarness) -> None:
    retire(captioned.instance, captioned.project, captioned.root, "a")
    captioned.run_sensor()
    captioned.materialize("clip_manifest", "a", version="2")
    retire(captioned.instance, captioned.project, captioned.root, "a")
    first, _ = list_entries(captioned.root)
    restore(captioned.instance, captioned.settings, captioned.root, "a", first.time)
    assert captioned.root.exists(OTHER_OUTPUTS[0])
    with pytest.raises(TrashError, match="no entry for shard 'a' at 2001"):
        restore(captioned.instance, captioned.settings, captioned.root, "a", "2001")


def test_restore_over_a_recaptioned_shard_is_an_error(captioned: AutomationHarness) -> None:
    retire(captioned.instance, captioned.project, captioned.root, "a")
    captioned.run_sensor()
    captioned.materialize("clip_manifest", "a", version="2")
    with pytest.raises(TrashError, match="was materialized again"):
        restore(captioned.instance, captioned.settings, captioned.root, "a")


def test_shard_leased_by_another_instance_is_neither_retired_nor_restored(captioned: AutomationHarness) -> None:
    before = contents(captioned.root)
    with Leases(captioned.root, "run of another instance") as leases:
        lease = leases.acquire("a")
        with pytest.raises(LeaseHeld):
            retire(captioned.instance, captioned.project, captioned.root, "a")
        assert contents(captioned.root) == before
        leases.release(lease)
        retire(captioned.instance, captioned.project, captioned.root, "a")
        leases.acquire("a")
        with pytest.raises(LeaseHeld):
            restore(captioned.instance, captioned.settings, captioned.root, "a")


def test_removed_shards_are_those_missing_from_the_source(captioned: AutomationHarness) -> None:
    remove_from_source(captioned, "ab")
    assert removed_shards(captioned.instance, captioned.project) == ["ab"]


def test_active_unknown_and_invalid_shards_are_not_retired(captioned: AutomationHarness) -> None:
    captioned.instance.add_dynamic_partitions(captioned.project.partitions_name, ["../weights"])
    with pytest.raises(RetireError, match="shard 'x' is not registered"):
        check(captioned.instance, captioned.project, ["a", "x"])
    with pytest.raises(RetireError, match=r"'\.\./weights' is not a valid shard name"):
        check(captioned.instance, captioned.project, ["../weights"])
    with pytest.raises(TrashError, match=r"'\.\./weights' is not a valid shard name"):
        restore(captioned.instance, captioned.settings, captioned.root, "../weights")
    captioned.launch(dg.RunRequest(tags={"dagster/partition": "a"}), dg.DagsterRunStatus.STARTED)
    with pytest.raises(RetireError, match="shard 'a' has an active run"):
        check(captioned.instance, captioned.project, ["a"])


def test_gpu_hours_sum_over_all_runs_with_valid_metadata(captioned: AutomationHarness) -> None:
    for seconds in (3600, 1800.0, -5, float("nan"), float("inf"), "many"):
        captioned.materialize("stage2_captions", "a", metadata={"gpu_seconds": seconds})
    captioned.materialize("stage1_captions", "a", metadata={"gpu_seconds": 1800})
    captioned.materialize("stage1_captions", "ab", metadata={"gpu_seconds": 1800})
    assert (
        gpu_hours(captioned.instance, captioned.project, [find_outputs(captioned.root, captioned.project, "a")]) == 2.0
    )


class Terminal(io.StringIO):
    """Standard input of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def commands(captioned: AutomationHarness, monkeypatch: pytest.MonkeyPatch) -> AutomationHarness:
    """A captioned project that commands find by the environment variables."""
    monkeypatch.setenv("CAPTION_ROOT", captioned.root.url)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return captioned


def test_unconfirmed_retire_command_describes_the_shards_and_moves_nothing(
    commands: AutomationHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.materialize("stage2_captions", "a", metadata={"gpu_seconds": 7200})
    before = contents(commands.root)
    for answer, error in (([], "add --yes 1"), (["--yes", "2"], "the answer must be 1")):
        assert error in str(run_cli("retire", "a", *answer))
        assert contents(commands.root) == before
    output = capsys.readouterr().out
    assert "a: 9 objects" in output
    assert "1 shards, 9 objects, 0.0 MB, 2.0 GPU-hours" in output
    assert "still in the source; will be captioned again unless removed there: a" in output


@pytest.mark.parametrize(("typed", "is_retired"), [("1\n", True), ("yes\n", False), ("\n", False), ("", False)])
def test_retire_command_accepts_only_the_number_typed(
    commands: AutomationHarness, monkeypatch: pytest.MonkeyPatch, typed: str, is_retired: bool
) -> None:
    commands.root.write("captioned_dataset/dataset.jsonl", b"lines of the shard")
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert (run_cli("retire", "a") is None) == is_retired
    assert commands.root.exists("captioned_dataset/dataset.jsonl") != is_retired
    assert ("a" not in commands.registered) == is_retired


def test_commands_retire_list_restore_and_empty(
    commands: AutomationHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_from_source(commands, "a")
    assert run_cli("retire", "--removed", "--yes", "1") is None
    assert "caption-assets trash restore a" in capsys.readouterr().out
    assert run_cli("trash", "list") is None
    assert "1 entries" in capsys.readouterr().out
    assert run_cli("trash", "restore", "a") is None
    assert commands.root.exists("gallery/a/index.html")
    assert run_cli("retire", "--removed", "--yes", "1") is None
    assert run_cli("trash", "empty", "1") is None
    assert "add --yes 1" in str(run_cli("trash", "empty", "0"))
    assert len(list_entries(commands.root)) == 1
    assert run_cli("trash", "empty", "0", "--yes", "1") is None
    assert commands.root.sizes("_trash") == {}
    assert "the trash has no entry for shard 'a'" in str(run_cli("trash", "restore", "a"))


def test_dataset_readers_do_not_see_the_trash(captioned: AutomationHarness, tmp_path: Path) -> None:
    retire(captioned.instance, captioned.project, captioned.root, "a")
    for table in TABLES:
        rows = ds.dataset(tmp_path / table).to_table()
        assert set(rows["shard"].to_pylist()) == {"ab"}
