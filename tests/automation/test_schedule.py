from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.automation.records import read_records
from caption_assets.automation.schedule import MAX_RANGE_FACTOR, build_backfill, partition_ranges
from caption_assets.automation.shard_states import predicted_work
from caption_assets.models.weights import WeightsManifest
from caption_assets.settings import Settings, SettingsError
from caption_assets.store.tables import CLIP_MANIFEST, SCHEMA_VERSION, CaptionRow, Status, publish_captions
from caption_assets.store.versions import read_versions
from tests.automation.conftest import AutomationHarness
from tests.stages import STAGE2

pytestmark = pytest.mark.fast

FAILED, STARTED = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED


def ranges(requests: list[dg.RunRequest] | str, asset: str) -> list[tuple[str, str]]:
    """First and last shard of the runs that materialize an asset."""
    assert isinstance(requests, list), requests
    return [
        (run.tags["dagster/asset_partition_range_start"], run.tags["dagster/asset_partition_range_end"])
        for run in requests
        if dg.AssetKey(asset) in (run.asset_selection or ()) and len(run.tags) > 1
    ]


def caption(harness: AutomationHarness, *shards: str) -> None:
    """Materialize all tables of shards."""
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        harness.materialize(asset, *shards)


@pytest.fixture
def six_shards(harness: AutomationHarness) -> AutomationHarness:
    """Six registered shards, with weights."""
    harness.add("a", "b", "c", "d", "e", "f")
    harness.run_sensor()
    harness.store_weights()
    return harness


def test_manifests_of_new_shards_are_requested_first(six_shards: AutomationHarness) -> None:
    requests = six_shards.run_schedule()
    assert ranges(requests, "clip_manifest") == [("a", "f")]
    assert ranges(requests, "stage2_captions") == []


def test_both_stages_are_requested_for_shards_with_manifests(six_shards: AutomationHarness) -> None:
    six_shards.materialize("clip_manifest", "a", "b", "d")
    requests = six_shards.run_schedule()
    assert ranges(requests, "stage1_captions") == ranges(requests, "stage2_captions") == [("a", "b"), ("d", "d")]
    assert ranges(requests, "clip_manifest") == [("c", "f")]


def test_missing_weights_are_requested_before_captions(harness: AutomationHarness) -> None:
    harness.add("a")
    harness.run_sensor()
    harness.materialize("clip_manifest", "a")
    [request] = harness.run_requests()
    assert request.asset_selection == [dg.AssetKey("model_weights")]


def test_weights_with_an_active_run_are_not_requested(harness: AutomationHarness) -> None:
    harness.add("a")
    harness.run_sensor()
    harness.materialize("clip_manifest", "a")
    [request] = harness.run_requests()
    harness.launch(request, STARTED)
    assert harness.run_schedule() == "0 of 1 shards are captioned"


def test_captioned_shards_are_not_requested(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_range_spans_captioned_shards_and_no_others(six_shards: AutomationHarness) -> None:
    caption(six_shards, "b", "c")
    six_shards.materialize("clip_manifest", "a", "d", "f")
    assert ranges(six_shards.run_schedule(), "stage1_captions") == [("a", "d"), ("f", "f")]


def test_changed_shard_is_requested_again(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    six_shards.add("c", content=b"other")
    six_shards.run_sensor()
    assert ranges(six_shards.run_schedule(), "clip_manifest") == [("c", "c")]
    six_shards.materialize("clip_manifest", "c", version="2")
    assert ranges(six_shards.run_schedule(), "stage1_captions") == [("c", "c")]


def test_captions_stay_current_when_a_rebuilt_manifest_is_the_same(six_shards: AutomationHarness) -> None:
    six_shards.materialize("clip_manifest", *"abcdef")
    for stage in ("stage1_captions", "stage2_captions"):
        six_shards.materialize(stage, *"abcdef", clip_manifest="1")
    six_shards.materialize("clip_manifest", "b")
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"
    six_shards.materialize("clip_manifest", "b", version="2")
    assert ranges(six_shards.run_schedule(), "stage2_captions") == [("b", "b")]


@pytest.mark.parametrize("asset", ["clip_manifest", "stage1_captions", "stage2_captions"])
def test_foreign_records_are_replaced_from_stored_tables(six_shards: AutomationHarness, asset: str) -> None:
    six_shards.add("g")
    six_shards.run_sensor()
    caption(six_shards, *"abcdefg")
    six_shards.record(asset, "a", tags=None)
    six_shards.record(asset, "b", tags={"mine": "x"})
    six_shards.record(asset, "c", tags={"dagster/data_version": "1"})
    six_shards.record(asset, "d", tags={"dagster/data_version": ""})
    six_shards.record(asset, "e", tags={"dagster/data_version": "1", "dagster/code_version": "2-256-128"})
    six_shards.record(asset, "f", tags={"dagster/data_version": "1", "dagster/input_data_version/other": "1"})
    six_shards.record(
        asset, "g", tags={"dagster/code_version": "2-256-128", "dagster/input_data_version/clip_manifest": "1"}
    )
    assert six_shards.run_schedule() == "7 of 7 shards are captioned"


@pytest.mark.parametrize("asset", ["clip_manifest", "stage2_captions"])
def test_foreign_record_of_a_missing_table_does_not_count(six_shards: AutomationHarness, asset: str) -> None:
    caption(six_shards, *"abdef")
    six_shards.record("clip_manifest", "c")
    six_shards.record("stage1_captions", "c")
    six_shards.record("stage2_captions", "c")
    assert ranges(six_shards.run_schedule(), "clip_manifest") == [("c", "c")]


def test_observation_without_version_makes_nothing_stale(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    six_shards.instance.report_runless_asset_event(dg.AssetObservation(six_shards.project.shards, partition="c"))
    six_shards.run_schedule()
    six_shards.run_sensor()
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_materialization_of_the_external_asset_changes_no_shard(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    six_shards.instance.report_runless_asset_event(dg.AssetMaterialization(six_shards.project.shards, partition="c"))
    six_shards.instance.report_runless_asset_event(dg.AssetMaterialization(six_shards.project.shards))
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_foreign_checks_and_unpartitioned_records_change_no_shard(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    for asset in ("shards", "clip_manifest", "stage2_captions"):
        key = six_shards.project.key(asset)
        six_shards.instance.report_runless_asset_event(dg.AssetCheckEvaluation(key, "mine", passed=True, partition="c"))
        six_shards.instance.report_runless_asset_event(dg.AssetObservation(key, partition="c"))
        six_shards.instance.report_runless_asset_event(dg.AssetMaterialization(key))
        six_shards.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition="not a shard"))
    six_shards.run_sensor()
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_wiped_assets_are_recorded_from_stored_tables(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    six_shards.instance.wipe_assets([six_shards.project.manifest, *six_shards.project.stages])
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"
    six_shards.instance.wipe_assets([six_shards.project.shards])
    assert six_shards.run_schedule() == "0 of 0 shards are captioned"
    six_shards.run_sensor()
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_tables_of_a_killed_run_are_recorded(six_shards: AutomationHarness) -> None:
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        six_shards.materialize(asset, *"abcdef", recorded=False)
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_missing_tables_are_requested_although_recorded(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    six_shards.delete_tables("stage1_captions", "b")
    six_shards.delete_tables("stage2_captions", "d")
    six_shards.delete_tables("clip_manifest", "f")
    requests = six_shards.run_schedule()
    assert ranges(requests, "stage2_captions") == [("b", "d")]
    assert ranges(requests, "clip_manifest") == [("f", "f")]


def test_stored_table_of_another_input_version_is_requested_again(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    six_shards.materialize("stage2_captions", "b", stage1_captions="0")
    six_shards.record("stage2_captions", "b", tags={"dagster/data_version": "x"})
    assert ranges(six_shards.run_schedule(), "stage2_captions") == [("b", "b")]


def test_stored_table_without_versions_or_record_is_requested_again(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    six_shards.publish(STAGE2.name, "b", None)
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"
    six_shards.record("stage2_captions", "b")
    assert ranges(six_shards.run_schedule(), "stage2_captions") == [("b", "b")]


def test_stored_table_that_fails_a_check_is_requested_again(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcde")
    six_shards.materialize("clip_manifest", "f")
    six_shards.materialize("stage1_captions", "f")
    six_shards.materialize("stage2_captions", "f", recorded=False)
    row = CaptionRow("a.mp4", 0, "id", 0.0, 1.0, Status.FAILED, error_kind="poison", error="x", attempts=1)
    versions = read_versions(six_shards.root, STAGE2.name, "f")
    assert versions
    publish_captions(six_shards.root, STAGE2.name, "f", [row], [row.key], versions.file_metadata)
    assert ranges(six_shards.run_schedule(), "stage2_captions") == [("f", "f")]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
def test_damaged_table_is_requested_again_alone(six_shards: AutomationHarness, content: bytes) -> None:
    caption(six_shards, *"abcdef")
    six_shards.root.write("clip_manifest/shard=c/manifest.parquet", content)
    six_shards.record("clip_manifest", "c")
    assert ranges(six_shards.run_schedule(), "clip_manifest") == [("c", "c")]


@pytest.mark.parametrize("schema", ["1", str(int(SCHEMA_VERSION) + 1), ""])
def test_manifest_of_another_schema_is_requested_before_captions(six_shards: AutomationHarness, schema: str) -> None:
    caption(six_shards, *"abcde")
    six_shards.materialize("clip_manifest", "e", "f", code=f"{schema}-256-128")
    requests = six_shards.run_schedule()
    assert ranges(requests, "clip_manifest") == [("e", "f")]
    assert ranges(requests, "stage2_captions") == []
    six_shards.materialize("clip_manifest", "e")
    assert ranges(six_shards.run_schedule(), "clip_manifest") == [("f", "f")]


def test_manifest_of_another_windowing_is_not_requested(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcdef")
    six_shards.materialize("clip_manifest", "e", code=f"{SCHEMA_VERSION}-10.0s")
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_empty_root_is_an_error_and_requests_nothing(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    root, source = tmp_path / "harness", tmp_path / "shards"
    harness = AutomationHarness(root, instance, source=str(source))
    harness.source = source
    source.mkdir()
    harness.add("a", "b")
    harness.run_sensor()
    harness.store_weights()
    caption(harness, "a", "b")
    root.rename(tmp_path / "unmounted")
    (root / "_runs").mkdir(parents=True)
    with pytest.raises(dg.DagsterError) as failed:
        harness.run_schedule()
    assert "is empty, but Dagster has records of 6 tables" in str(failed.value.__cause__)


def test_shard_missing_from_the_source_is_not_requested(six_shards: AutomationHarness) -> None:
    (six_shards.source / "c.jsonl").unlink()
    assert ranges(six_shards.run_schedule(), "clip_manifest") == [("a", "b"), ("d", "f")]
    caption(six_shards, *"abdef")
    assert six_shards.run_schedule() == "5 of 6 shards are captioned; 1 are missing from the source: c"


def test_tables_beyond_the_comparison_limit_wait_for_the_next_tick(
    six_shards: AutomationHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caption_assets.automation.schedule.MAX_COMPARED", 4)
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        six_shards.materialize(asset, *"abcdef", recorded=False)
    assert (
        six_shards.run_schedule()
        == "4 of 6 shards are captioned; 2 are compared with their stored tables by a later tick"
    )
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_tables_beyond_the_time_limit_wait_for_the_next_tick(
    six_shards: AutomationHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caption_assets.automation.schedule.RECORDING_SECONDS", 0)
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        six_shards.materialize(asset, *"abcdef", recorded=False)
    assert (
        six_shards.run_schedule()
        == "0 of 6 shards are captioned; 6 are compared with their stored tables by a later tick"
    )
    monkeypatch.undo()
    assert six_shards.run_schedule() == "6 of 6 shards are captioned"


def test_foreign_record_of_weights_is_replaced_from_stored_weights(six_shards: AutomationHarness) -> None:
    six_shards.materialize("clip_manifest", *"abcdef")
    for _ in range(5):
        six_shards.instance.report_runless_asset_event(dg.AssetMaterialization(six_shards.project.weights))
        assert ranges(six_shards.run_schedule(), "stage2_captions") == [("a", "f")]
    event = six_shards.instance.get_latest_materialization_event(six_shards.project.weights)
    assert event
    assert event.asset_materialization
    assert (event.asset_materialization.tags or {})["dagster/code_version"] == six_shards.settings.variant.folder


def test_missing_adapter_is_requested(six_shards: AutomationHarness) -> None:
    six_shards.materialize("clip_manifest", "a")
    six_shards.settings = six_shards.settings.model_copy(update={"lora": "someone/adapter", "lora_revision": "5" * 40})
    requested = [request.asset_selection for request in six_shards.run_requests()]
    assert [dg.AssetKey("model_weights")] in requested
    lora = six_shards.settings.adapter
    assert lora is not None
    manifest = WeightsManifest(lora.hub_id, lora.revision, ())
    six_shards.root.write(f"weights/{lora.folder}/weights-manifest.json", manifest.to_json().encode())
    assert ranges(six_shards.run_requests(), "stage2_captions") == [("a", "a")]
    event = six_shards.instance.get_latest_materialization_event(six_shards.project.weights)
    assert event
    assert event.asset_materialization
    code = (event.asset_materialization.tags or {})["dagster/code_version"]
    assert code == f"{six_shards.settings.variant.folder}+lora--someone--adapter/{'5' * 40}"


def test_missing_weights_are_requested(six_shards: AutomationHarness) -> None:
    six_shards.materialize("clip_manifest", "a")
    six_shards.root.remove_folder("weights")
    requests = six_shards.run_requests()
    assert [dg.AssetKey("model_weights")] in [request.asset_selection for request in requests]


def test_shard_without_one_stage_is_requested(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcde")
    six_shards.materialize("clip_manifest", "f")
    six_shards.materialize("stage1_captions", "f")
    assert ranges(six_shards.run_schedule(), "stage2_captions") == [("f", "f")]


def test_shards_with_active_runs_are_not_requested(six_shards: AutomationHarness) -> None:
    for request in six_shards.run_requests():
        six_shards.launch(request, STARTED)
    assert six_shards.run_schedule() == "0 of 6 shards are captioned; 6 have active runs"


def test_manually_launched_run_counts_as_active(six_shards: AutomationHarness) -> None:
    manual = dg.RunRequest(tags={"dagster/partition": "c"})
    six_shards.launch(manual, STARTED)
    assert ranges(six_shards.run_schedule(), "clip_manifest") == [("a", "b"), ("d", "f")]


def test_failing_shard_is_requested_up_to_the_limit_until_it_changes(six_shards: AutomationHarness) -> None:
    caption(six_shards, *"abcde")
    for _ in range(six_shards.settings.shard_attempts):
        [request] = six_shards.run_requests()
        six_shards.launch(request, FAILED)
    assert "1 are not retried after 3 runs (CAPTION_SHARD_ATTEMPTS)" in str(six_shards.run_schedule())
    assert "f (clip_manifest)" in str(six_shards.run_schedule())
    six_shards.add("f", content=b"fixed")
    six_shards.run_sensor()
    assert ranges(six_shards.run_schedule(), "clip_manifest") == [("f", "f")]


def test_removed_shard_is_not_requested(six_shards: AutomationHarness) -> None:
    (six_shards.source / "c.jsonl").unlink()
    six_shards.run_sensor()
    assert ranges(six_shards.run_schedule(), "clip_manifest") == [("a", "b"), ("d", "f")]


def test_active_shards_stay_within_backfill_concurrency(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    harness = AutomationHarness(tmp_path, instance, backfill_concurrency=3, shards_per_run=2)
    harness.add(*"abcdef")
    harness.run_sensor()
    harness.store_weights()
    requests = harness.run_requests()
    assert ranges(requests, "clip_manifest") == [("a", "b"), ("c", "c")]
    for request in requests:
        harness.launch(request, STARTED)
    assert "3 have active runs" in str(harness.run_schedule())


def test_invalid_cron_schedule_is_an_error() -> None:
    with pytest.raises(SettingsError, match="CAPTION_BACKFILL_CRON='hourly' is not a cron schedule"):
        build_backfill(Settings(backfill_cron="hourly"))


@given(st.data())
def test_partition_ranges_contain_each_wanted_shard_once(data: st.DataObject) -> None:
    order = [f"s{number}" for number in range(data.draw(st.integers(0, 30)))]
    kinds = {shard: data.draw(st.sampled_from(["wanted", "complete", "other"])) for shard in order}
    wanted = {shard for shard in order if kinds[shard] == "wanted"}
    complete = {shard for shard in order if kinds[shard] == "complete"}
    limit = data.draw(st.integers(1, 5))

    found = list(partition_ranges(order, wanted, complete, limit))

    assert [shard for found_range in found for shard in found_range if shard in wanted] == [
        s for s in order if s in wanted
    ]
    for found_range in found:
        first = order.index(found_range[0])
        assert found_range == order[first : first + len(found_range)]
        assert {found_range[0], found_range[-1]} <= wanted
        assert set(found_range) <= wanted | complete
        assert len(wanted.intersection(found_range)) <= limit
        assert len(found_range) <= MAX_RANGE_FACTOR * limit


def test_predicted_work_ignores_implausible_metadata(six_shards: AutomationHarness) -> None:
    plausible = {"rows_ok": 10, "predicted_visual_tokens": 2000}
    implausible: list[dict[str, object] | None] = [
        None,
        {"rows_ok": 10},
        {**plausible, "rows_ok": -1},
        {**plausible, "predicted_visual_tokens": -10},
        {**plausible, "rows_ok": 10**15},
        {**plausible, "predicted_visual_tokens": 10**15},
        {**plausible, "rows_ok": "ten"},
        {**plausible, "rows_ok": float("nan")},
        {**plausible, "rows_ok": float("inf")},
        {**plausible, "rows_ok": 1.5},
        {**plausible, "rows_ok": {"n": 1}},
    ]
    six_shards.materialize("clip_manifest", "a", metadata=plausible)
    [good] = events(six_shards, "a")
    assert predicted_work(six_shards.instance, six_shards.project, [good]) == (10, 2000)
    for metadata in implausible:
        six_shards.materialize("clip_manifest", "b", metadata=metadata)
        [bad] = events(six_shards, "b")
        assert predicted_work(six_shards.instance, six_shards.project, [good, bad]) is None
    assert predicted_work(six_shards.instance, six_shards.project, [good, bad + 1]) is None


def events(harness: AutomationHarness, shard: str) -> list[int]:
    """Storage id of the event that recorded a shard's manifest."""
    return [read_records(harness.instance, harness.project, CLIP_MANIFEST, [shard])[shard].event]


def test_pod_has_its_default_size_for_implausible_metadata(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    harness = AutomationHarness(tmp_path, instance, executor="k8s")
    harness.add("a")
    harness.run_sensor()
    harness.store_weights()
    harness.materialize("clip_manifest", "a", metadata={"rows_ok": -1})
    [request] = harness.run_requests()
    assert request.run_config == {}


def test_pod_size_grows_with_the_predicted_work(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    def requested_memory(windows: int) -> int:
        harness.materialize(
            "clip_manifest", "a", metadata={"rows_ok": windows, "predicted_visual_tokens": 200 * windows}
        )
        [request] = harness.run_requests()
        [step] = request.run_config["execution"]["config"]["per_step_k8s_config"].values()
        return int(step["container_config"]["resources"]["requests"]["memory"].removesuffix("Mi"))

    harness = AutomationHarness(tmp_path, instance, executor="k8s")
    harness.add("a")
    harness.run_sensor()
    harness.store_weights()
    assert requested_memory(10) < requested_memory(1000)
