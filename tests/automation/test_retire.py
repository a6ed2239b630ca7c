from __future__ import annotations

import io
import sys
from pathlib import Path

import dagster as dg
import pyarrow.dataset as ds
import pytest

from caption_assets.assets.shard_index import observation
from caption_assets.automation.retire import RetireError, check, find_outputs, gpu_hours, removed_shards, retire
from caption_assets.automation.trash import restore
from caption_assets.store.lease import LeaseHeld, Leases
from caption_assets.store.root import Root
from caption_assets.store.trash import TrashError, list_entries
from tests.automation.conftest import Site
from tests.cli import run_cli

pytestmark = pytest.mark.fast

TABLES = ("clip_manifest", "stage1_captions", "stage2_captions")
OTHERS = (
    "gallery/a/index.html",
    "gallery/a/previews/1.jpg",
    "captioned_dataset/data/shard=a/index.json",
    "_checkpoints/shard=a/000001-000000-stage1_captions.parquet",
)


@pytest.fixture
def made(site: Site) -> Site:
    """Two shards that are captioned, one with all else that can be made of it, one whose name begins with its name."""
    site.add("a", "ab")
    site.look()
    site.fetch_weights()
    for table in TABLES:
        site.materialize(table, "a", "ab")
    for path in (*OTHERS, "gallery/ab/index.html"):
        site.root.write(path, path.encode())
    return site


def contents(root: Root, *folders: str) -> dict[str, bytes]:
    """What lies in the root, save the trash, leases and what is not made of shards."""
    below = folders or (*TABLES, "gallery", "captioned_dataset", "_checkpoints")
    found = {path for folder in below for path in root.sizes(folder)}
    return {path: root.read(path) for path in found if "/lease-" not in path}


def gone(site: Site, shard: str) -> None:
    """A shard goes from the source, and the sensor has seen it."""
    (site.source / f"{shard}.jsonl").unlink()
    site.instance.report_runless_asset_event(observation(site.project, shard, "removed"))


def test_a_retired_shard_leaves_its_source_and_an_entry_in_the_trash(made: Site) -> None:
    before = {path: data for path, data in contents(made.root).items() if "ab" not in path}
    retire(made.instance, made.project, made.root, "a")
    assert all("ab" in path for path in contents(made.root))
    assert find_outputs(made.root, "a").paths == []
    [entry] = list_entries(made.root)
    assert entry.sizes.keys() == before.keys()
    assert (made.source / "a.jsonl").exists()
    assert made.registered == ["ab"]


def test_a_retired_shard_that_is_brought_back_is_captioned_as_before(made: Site) -> None:
    before = contents(made.root)
    retire(made.instance, made.project, made.root, "a")
    restore(made.instance, made.settings, made.root, "a")
    assert contents(made.root) == before
    assert list_entries(made.root) == []
    assert sorted(made.registered) == ["a", "ab"]
    assert made.tick() == "2 of 2 shards are captioned"


def test_a_retired_shard_that_is_still_in_the_source_is_captioned_again(made: Site) -> None:
    retire(made.instance, made.project, made.root, "a")
    made.look()
    [request] = made.requests()
    assert request.asset_selection == [dg.AssetKey("clip_manifest")]
    made.materialize("clip_manifest", "a")
    [request] = made.requests()
    assert dg.AssetKey("stage2_captions") in (request.asset_selection or ())


def test_a_retired_shard_has_all_its_attempts_anew(made: Site) -> None:
    for _ in range(made.settings.shard_attempts):
        retire(made.instance, made.project, made.root, "a")
        made.look()
        [request] = made.requests()
        made.launch(request, dg.DagsterRunStatus.SUCCESS)
        made.materialize("clip_manifest", "a")
        [request] = made.requests()
        made.launch(request, dg.DagsterRunStatus.SUCCESS)
        made.materialize("stage1_captions", "a")
        made.materialize("stage2_captions", "a")
    retire(made.instance, made.project, made.root, "a")
    made.look()
    assert len(made.requests()) == 1


def test_a_shard_that_was_retired_while_it_was_gone_is_captioned_when_it_comes_back_unchanged(made: Site) -> None:
    gone(made, "a")
    retire(made.instance, made.project, made.root, "a")
    made.add("a")
    made.look()
    assert sorted(made.registered) == ["a", "ab"]
    [request] = made.requests()
    assert request.asset_selection == [dg.AssetKey("clip_manifest")]


def test_the_event_log_says_that_the_tables_are_gone(made: Site) -> None:
    retire(made.instance, made.project, made.root, "a")
    for table in TABLES:
        [record] = made.instance.fetch_materializations(
            dg.AssetRecordsFilter(made.project.key(table), asset_partitions=["a"]), limit=1
        ).records
        assert record.asset_materialization
        assert (record.asset_materialization.tags or {})["dagster/data_version"] == "removed"


def test_retiring_that_was_interrupted_can_be_repeated(made: Site) -> None:
    before = contents(made.root)
    retire(made.instance, made.project, made.root, "a")
    [entry] = list_entries(made.root)
    made.instance.add_dynamic_partitions(made.project.partitions_name, ["a"])  # as if it had not come so far
    made.root.remove(f"{entry.folder}/_complete")
    made.root.move(f"{entry.folder}/{OTHERS[0]}", OTHERS[0])
    retire(made.instance, made.project, made.root, "a")
    restore(made.instance, made.settings, made.root, "a")
    assert contents(made.root) == before


def test_an_older_entry_is_brought_back_by_its_time(made: Site) -> None:
    retire(made.instance, made.project, made.root, "a")
    made.look()
    made.materialize("clip_manifest", "a", version="2")
    retire(made.instance, made.project, made.root, "a")
    first, _ = list_entries(made.root)
    restore(made.instance, made.settings, made.root, "a", first.time)
    assert made.root.exists(OTHERS[0])
    with pytest.raises(TrashError, match="no entry for shard 'a' at 2001"):
        restore(made.instance, made.settings, made.root, "a", "2001")


def test_nothing_is_brought_back_over_a_shard_that_was_made_again(made: Site) -> None:
    retire(made.instance, made.project, made.root, "a")
    made.look()
    made.materialize("clip_manifest", "a", version="2")
    with pytest.raises(TrashError, match="was made again since"):
        restore(made.instance, made.settings, made.root, "a")


def test_a_shard_that_another_instance_captions_is_neither_retired_nor_brought_back(made: Site) -> None:
    before = contents(made.root)
    with Leases(made.root, "run of another instance") as leases:
        lease = leases.take("a")
        with pytest.raises(LeaseHeld):
            retire(made.instance, made.project, made.root, "a")
        assert contents(made.root) == before
        leases.release(lease)
        retire(made.instance, made.project, made.root, "a")
        leases.take("a")
        with pytest.raises(LeaseHeld):
            restore(made.instance, made.settings, made.root, "a")


def test_what_is_gone_from_the_source_is_found(made: Site) -> None:
    gone(made, "ab")
    assert removed_shards(made.instance, made.project) == ["ab"]


def test_a_shard_under_way_unknown_or_with_a_path_for_a_name_is_not_retired(made: Site) -> None:
    made.instance.add_dynamic_partitions(made.project.partitions_name, ["../weights"])
    with pytest.raises(RetireError, match="shard 'x' is not registered"):
        check(made.instance, made.project, ["a", "x"])
    with pytest.raises(RetireError, match=r"'\.\./weights' is not a valid shard name"):
        check(made.instance, made.project, ["../weights"])
    with pytest.raises(TrashError, match=r"'\.\./weights' is not a valid shard name"):
        restore(made.instance, made.settings, made.root, "../weights")
    made.launch(dg.RunRequest(tags={"dagster/partition": "a"}), dg.DagsterRunStatus.STARTED)
    with pytest.raises(RetireError, match="shard 'a' has an active run"):
        check(made.instance, made.project, ["a"])


def test_gpu_hours_are_those_of_all_runs_as_far_as_their_records_tell(made: Site) -> None:
    for seconds in (3600, 1800.0, -5, float("nan"), float("inf"), "many"):
        made.materialize("stage2_captions", "a", metadata={"gpu_seconds": seconds})
    made.materialize("stage1_captions", "a", metadata={"gpu_seconds": 1800})
    made.materialize("stage1_captions", "ab", metadata={"gpu_seconds": 1800})
    assert gpu_hours(made.instance, made.project, ["a"]) == 2.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def commands(made: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site, as the project of the commands: the instance is that of DAGSTER_HOME."""
    monkeypatch.setenv("CAPTION_ROOT", made.root.url)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return made


def test_retire_command_describes_the_shards_and_moves_nothing_unconfirmed(
    commands: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.materialize("stage2_captions", "a", metadata={"gpu_seconds": 7200})
    before = contents(commands.root)
    for answer, error in (([], "add --yes 1"), (["--yes", "2"], "the answer must be 1")):
        assert error in str(run_cli("retire", "a", *answer))
        assert contents(commands.root) == before
    output = capsys.readouterr().out
    assert "a: 7 objects" in output
    assert "1 shards, 7 objects, 0.0 MB, 2.0 GPU-hours" in output
    assert "still in the source; will be captioned again unless removed there: a" in output


@pytest.mark.parametrize(("typed", "is_retired"), [("1\n", True), ("yes\n", False), ("\n", False), ("", False)])
def test_retire_command_accepts_only_the_number_typed(
    commands: Site, monkeypatch: pytest.MonkeyPatch, typed: str, is_retired: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert (run_cli("retire", "a") is None) == is_retired
    assert ("a" not in commands.registered) == is_retired


def test_commands_retire_list_restore_and_empty(commands: Site, capsys: pytest.CaptureFixture[str]) -> None:
    gone(commands, "a")
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


def test_readers_of_the_tables_do_not_see_the_trash(made: Site, tmp_path: Path) -> None:
    retire(made.instance, made.project, made.root, "a")
    for table in TABLES:
        rows = ds.dataset(tmp_path / table, partitioning="hive").to_table()
        assert set(rows["shard"].to_pylist()) == {"ab"}
