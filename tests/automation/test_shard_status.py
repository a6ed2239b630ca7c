from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

from caption_assets.automation import failed_attempts
from caption_assets.automation.shard_status import ShardStatus, State, TableStatus, read_statuses
from caption_assets.automation.status_summary import count_states, count_tables, failures, staleness, unrecorded
from caption_assets.store.corrections import Correction, Decision, save_correction
from caption_assets.store.tables import CLIP_MANIFEST
from tests.automation.conftest import AutomationHarness
from tests.cli import run_cli
from tests.recipes import FOUR_STAGES, write_recipe
from tests.report.windows import captioned as caption_of
from tests.report.windows import window

pytestmark = pytest.mark.fast

SHARDS = ("a", "b", "c")


@pytest.fixture
def captioned(tmp_path: Path, instance: dg.DagsterInstance) -> AutomationHarness:
    """Three shards with captions of four stages, and a recipe that changes."""
    harness = AutomationHarness(tmp_path, instance, recipe=str(write_recipe(tmp_path / "recipes")))
    harness.add(*SHARDS)
    harness.run_sensor()
    harness.store_weights()
    for table in (CLIP_MANIFEST, *FOUR_STAGES):
        harness.materialize(table, *SHARDS, metadata={"rows_ok": 5, "rows_failed": 1})
    return harness


def statuses(harness: AutomationHarness, *in_source: str) -> dict[str, ShardStatus]:
    return read_statuses(harness.instance, harness.settings, harness.root, in_source or None)


def states(harness: AutomationHarness, *in_source: str) -> dict[str, str]:
    return {shard: str(status.state) for shard, status in statuses(harness, *in_source).items()}


def table_states(status: ShardStatus) -> dict[str, str]:
    return {name: str(table.state) for name, table in status.tables.items()}


def fail(
    harness: AutomationHarness, shard: str, *tables: str, status: dg.DagsterRunStatus = dg.DagsterRunStatus.FAILURE
) -> dg.DagsterRun:
    """A run that planned tables of a shard and has not made them."""
    run = harness.instance.add_run(dg.DagsterRun(job_name="j", status=status))
    for table in tables:
        plan = DagsterEvent.build_asset_materialization_planned_event(
            "j", "step", AssetMaterializationPlannedData(harness.project.key(table), shard)
        )
        harness.instance.report_dagster_event(plan, run.run_id)
    return run


def test_captioned_shards_are_complete(captioned: AutomationHarness) -> None:
    found = statuses(captioned)
    assert count_states(found) == {State.COMPLETE: 3}
    counts = count_tables(found, captioned.project.tables)["alignment"]
    assert (counts.states.get(State.COMPLETE), counts.rows_ok, counts.rows_failed) == (3, 15, 3)
    assert (failures(found), staleness(found), unrecorded(found)) == ([], [], [])


def test_each_state_of_a_new_shard_is_named(captioned: AutomationHarness) -> None:
    captioned.add("d", "e")
    captioned.run_sensor()
    captioned.materialize(CLIP_MANIFEST, "e")
    captioned.delete_tables("alignment", "a")
    assert states(captioned, "a", "b", "d", "e", "f") == {
        "a": "missing captions",
        "b": "complete",
        "c": "missing from the source",
        "d": "no manifest",
        "e": "missing captions",
        "f": "not registered",
    }
    [group] = unrecorded(statuses(captioned))
    assert (group.tables, group.shards) == (["alignment"], ["a"])
    assert group.reason.startswith("recorded, but not stored")


def test_changed_prompt_is_explained_for_all_shards_at_once(captioned: AutomationHarness, tmp_path: Path) -> None:
    captioned.use_recipe(str(write_recipe(tmp_path / "changed", stage2="Shorten: {stage1_captions}")))
    found = statuses(captioned)
    assert table_states(found["a"]) == {
        "clip_manifest": "complete",
        "stage1_captions": "complete",
        "stage2_captions": "stale",
        "attributes": "complete",
        "alignment": "stale",
    }
    change = "changed: 'Improve: {stage1_captions}' → 'Shorten: {stage1_captions}'"
    assert [(group.tables, group.reason, group.shards) for group in staleness(found)] == [
        (["stage2_captions"], f"prompt {change}", ["a", "b", "c"]),
        (["alignment"], f"prompt of stage2_captions {change}", ["a", "b", "c"]),
    ]


def test_changed_inputs_are_explained(captioned: AutomationHarness) -> None:
    captioned.add("a", content=b"{} ")
    captioned.run_sensor()
    captioned.materialize("stage1_captions", "b", model_weights="old")
    captioned.materialize("attributes", "c", clip_manifest="old")
    found = statuses(captioned)
    assert [(group.tables, group.reason.split(":")[0], group.shards) for group in staleness(found)] == [
        (["clip_manifest"], "clips changed", ["a"]),
        (["stage1_captions"], "weights changed", ["b"]),
        (["attributes"], "manifest changed", ["c"]),
    ]
    assert found["a"].tables["stage1_captions"].stale_inputs == ["clip_manifest"]
    assert found["b"].tables["alignment"].stale_inputs == ["stage2_captions"]
    assert table_states(found["c"])["alignment"] == "complete"


def test_changed_windows_are_explained(captioned: AutomationHarness) -> None:
    captioned.settings = captioned.settings.model_copy(update={"window_seconds": 10.0})
    [group] = staleness(statuses(captioned))
    assert (group.tables, group.reason) == (["clip_manifest"], "window length changed: 256-128 → 10.0s")


def test_shards_of_active_runs_are_running(captioned: AutomationHarness) -> None:
    run = captioned.launch(dg.RunRequest(tags={"dagster/partition": "b"}), dg.DagsterRunStatus.STARTED)
    assert states(captioned)["b"] == "running"
    captioned.instance.report_run_failed(run)
    assert states(captioned)["b"] == "complete"


def test_reported_reason_of_a_failure_is_shared(captioned: AutomationHarness) -> None:
    for shard in ("a", "b"):
        captioned.delete_tables("stage2_captions", shard)
        captioned.delete_tables("alignment", shard)
        fail(captioned, shard, "stage2_captions", "alignment")
        for table in ("stage2_captions", "alignment"):
            event = dg.AssetObservation(captioned.project.key(table), partition=shard, metadata={"error": "disk full"})
            captioned.instance.report_runless_asset_event(event)
    found = statuses(captioned)
    assert [str(found[shard].state) for shard in SHARDS] == ["failed", "failed", "complete"]
    [group] = failures(found)
    assert (group.tables, group.reason) == (("stage2_captions", "alignment"), "disk full")
    assert group.shards == ["a", "b"]


def test_failure_without_a_reported_reason_names_the_run(captioned: AutomationHarness) -> None:
    captioned.delete_tables("alignment", "a")
    run = fail(captioned, "a", "alignment")
    table = statuses(captioned)["a"].tables["alignment"]
    assert table.reason.startswith(f"run {run.run_id} failed")
    assert table.run_id == run.run_id


def test_later_run_that_left_out_a_failed_shard_keeps_its_reason(captioned: AutomationHarness) -> None:
    captioned.delete_tables("alignment", "a")
    fail(captioned, "a", "alignment")
    event = dg.AssetObservation(captioned.project.key("alignment"), partition="a", metadata={"error": "disk full"})
    captioned.instance.report_runless_asset_event(event)
    fail(captioned, "a", "alignment")
    assert statuses(captioned)["a"].tables["alignment"].reason == "disk full"


def test_reasons_are_read_of_the_latest_runs_alone(
    captioned: AutomationHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failed_attempts, "MAX_READ_RUNS", 1)
    for shard in ("b", "c", "a"):
        captioned.delete_tables("alignment", shard)
        run = fail(captioned, shard, "alignment", status=dg.DagsterRunStatus.STARTED)
        captioned.instance.report_run_failed(run, f"no memory for {shard}")
    found = statuses(captioned)
    reasons = [found[shard].tables["alignment"].reason for shard in SHARDS]
    assert reasons[0] == "no memory for a"
    assert all("has not reported" in reason for reason in reasons[1:])


def test_failed_run_over_a_complete_shard_leaves_it_complete(captioned: AutomationHarness) -> None:
    fail(captioned, "a", "alignment")
    assert states(captioned)["a"] == "complete"


def test_table_made_after_a_failure_is_complete(captioned: AutomationHarness) -> None:
    fail(captioned, "a", "alignment")
    captioned.materialize("alignment", "a")
    assert statuses(captioned)["a"].tables["alignment"] == TableStatus(State.COMPLETE)


@pytest.fixture
def environment(captioned: AutomationHarness, monkeypatch: pytest.MonkeyPatch) -> AutomationHarness:
    """The project in the environment of the command line."""
    monkeypatch.setenv("DAGSTER_HOME", captioned.instance.root_directory)
    monkeypatch.setenv("CAPTION_ROOT", captioned.settings.root)
    monkeypatch.setenv("CAPTION_RECIPE", str(captioned.settings.recipe))
    return captioned


def test_command_says_that_nothing_is_to_do(environment: AutomationHarness, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("status", "--exit-code") is None
    out = capsys.readouterr().out
    assert "       3  complete\n" in out
    assert out.endswith("\nnothing to do\n")


def test_command_prints_reasons_and_the_next_command(
    environment: AutomationHarness,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CAPTION_RECIPE", str(write_recipe(tmp_path / "changed", alignment="Right? {stage2_captions}")))
    environment.add("d")
    assert run_cli("status", "--exit-code") == "3"
    lines = capsys.readouterr().out.splitlines()
    assert "       3  stale: a, b, c" in lines
    assert "       1  not registered: d" in lines
    assert "          prompt changed: 'Is it right? {stage2_captions}' → 'Right? {stage2_captions}'" in lines
    assert lines[-2:] == [
        "next: caption-assets run          # new and changed shards",
        "      caption-assets run --stale  # rows that are unchanged are reused",
    ]
    assert run_cli("status", "a") is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a: stale"
    assert lines[-1].startswith("next: caption-assets run a  #")


def test_command_says_why_a_shard_is_not_registered(
    environment: AutomationHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.add("sp ace")
    assert run_cli("status", "--exit-code") == "3"
    out = capsys.readouterr().out
    assert (
        "\nRefused\n       1  sp ace.jsonl\n          its name is not a valid partition key: use ASCII letters" in out
    )
    assert out.endswith("next: rename the refused shards\n")
    assert run_cli("status", "--json") is None
    found = json.loads(capsys.readouterr().out)
    assert (list(found["refused"]), found["next"]) == (["sp ace.jsonl"], [])


def test_command_quotes_names_that_look_like_options(
    environment: AutomationHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.add("-d")
    assert run_cli("status", "--", "-d") is None
    assert "next: caption-assets run -- -d  #" in capsys.readouterr().out


def test_command_sees_changed_clips_before_they_are_reported(
    environment: AutomationHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.add("b", content=b"{} ")
    assert run_cli("status") is None
    out = capsys.readouterr().out
    assert "       1  stale: b\n" in out
    assert out.endswith("next: caption-assets run  # new and changed shards\n")


def test_command_proposes_to_export_corrections(
    environment: AutomationHarness, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = caption_of(window("car.mp4"), "A red car.")
    for shard in ("a", "retired"):
        save_correction(environment.root, shard, Correction.of(row, "stage2_captions", Decision.ACCEPT, "ann"))
    assert run_cli("status") is None
    assert capsys.readouterr().out.endswith("\nnothing to do\n")
    monkeypatch.setenv("CAPTION_EXPORT", "jsonl")
    assert run_cli("status") is None
    command = "caption-assets export a"
    assert capsys.readouterr().out.endswith(f"\nnext: {command}  # with the corrections since their last export\n")
    assert run_cli("status", "--json") is None
    assert json.loads(capsys.readouterr().out)["next"] == [command]


def test_command_prints_json(environment: AutomationHarness, capsys: pytest.CaptureFixture[str]) -> None:
    environment.add("d")
    assert run_cli("status", "--json") is None
    found = json.loads(capsys.readouterr().out)
    assert found["states"] == {"not registered": 1, "complete": 3}
    assert found["next"] == ["caption-assets run"]
    assert found["tables"]["clip_manifest"]["rows_ok"] == 15


def test_unknown_shard_is_an_error_with_similar_names(environment: AutomationHarness) -> None:
    environment.add("shard-0001")
    assert "did you mean shard-0001?" in str(run_cli("status", "shard-001"))
