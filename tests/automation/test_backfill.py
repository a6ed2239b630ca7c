from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.automation.backfill import SPAN, build_backfill, stretches
from caption_assets.automation.records import read_records
from caption_assets.automation.shard_states import predicted_work
from caption_assets.captioning.stages import STAGE2
from caption_assets.models.weights import WeightsManifest
from caption_assets.settings import Settings, SettingsError
from caption_assets.store.tables import CLIP_MANIFEST, SCHEMA_VERSION, CaptionRow, Status, publish_captions
from caption_assets.store.versions import read_versions
from tests.automation.conftest import Site

pytestmark = pytest.mark.fast

FAILED, STARTED = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED


def ranges(requests: list[dg.RunRequest] | str, asset: str) -> list[tuple[str, str]]:
    """First and last shard of the runs that make an asset."""
    assert isinstance(requests, list), requests
    return [
        (run.tags["dagster/asset_partition_range_start"], run.tags["dagster/asset_partition_range_end"])
        for run in requests
        if dg.AssetKey(asset) in (run.asset_selection or ()) and len(run.tags) > 1
    ]


def captioned(site: Site, *shards: str) -> None:
    """Everything is made of these shards."""
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        site.materialize(asset, *shards)


@pytest.fixture
def known(site: Site) -> Site:
    """A site of six registered shards, with weights."""
    site.add("a", "b", "c", "d", "e", "f")
    site.look()
    site.fetch_weights()
    return site


def test_new_shards_get_manifests_first(known: Site) -> None:
    requests = known.tick()
    assert ranges(requests, "clip_manifest") == [("a", "f")]
    assert ranges(requests, "stage2_captions") == []


def test_shards_with_manifests_are_captioned_in_both_stages(known: Site) -> None:
    known.materialize("clip_manifest", "a", "b", "d")
    requests = known.tick()
    assert ranges(requests, "stage1_captions") == ranges(requests, "stage2_captions") == [("a", "b"), ("d", "d")]
    assert ranges(requests, "clip_manifest") == [("c", "f")]


def test_captions_wait_for_the_weights_which_are_requested(site: Site) -> None:
    site.add("a")
    site.look()
    site.materialize("clip_manifest", "a")
    [request] = site.requests()
    assert request.asset_selection == [dg.AssetKey("model_weights")]


def test_weights_that_are_under_way_are_not_requested_again(site: Site) -> None:
    site.add("a")
    site.look()
    site.materialize("clip_manifest", "a")
    [request] = site.requests()
    site.launch(request, STARTED)
    assert site.tick() == "0 of 1 shards are captioned"


def test_whole_shards_are_not_asked_for(known: Site) -> None:
    captioned(known, *"abcdef")
    assert known.tick() == "6 of 6 shards are captioned"


def test_a_run_may_pass_over_whole_shards_but_over_no_others(known: Site) -> None:
    captioned(known, "b", "c")
    known.materialize("clip_manifest", "a", "d", "f")
    assert ranges(known.tick(), "stage1_captions") == [("a", "d"), ("f", "f")]


def test_a_changed_shard_is_asked_for_again(known: Site) -> None:
    captioned(known, *"abcdef")
    known.add("c", content=b"other")
    known.look()
    assert ranges(known.tick(), "clip_manifest") == [("c", "c")]
    known.materialize("clip_manifest", "c", version="2")
    assert ranges(known.tick(), "stage1_captions") == [("c", "c")]


def test_captions_of_a_manifest_that_was_made_again_and_is_the_same_stand(known: Site) -> None:
    known.materialize("clip_manifest", *"abcdef")
    for stage in ("stage1_captions", "stage2_captions"):
        known.materialize(stage, *"abcdef", clip_manifest="1")
    known.materialize("clip_manifest", "b")
    assert known.tick() == "6 of 6 shards are captioned"
    known.materialize("clip_manifest", "b", version="2")
    assert ranges(known.tick(), "stage2_captions") == [("b", "b")]


@pytest.mark.parametrize("asset", ["clip_manifest", "stage1_captions", "stage2_captions"])
def test_somebody_elses_records_stop_nothing_and_what_is_stored_is_recorded_again(known: Site, asset: str) -> None:
    known.add("g")
    known.look()
    captioned(known, *"abcdefg")
    known.record(asset, "a", tags=None)
    known.record(asset, "b", tags={"mine": "x"})
    known.record(asset, "c", tags={"dagster/data_version": "1"})
    known.record(asset, "d", tags={"dagster/data_version": ""})
    known.record(asset, "e", tags={"dagster/data_version": "1", "dagster/code_version": "2-256-128"})
    known.record(asset, "f", tags={"dagster/data_version": "1", "dagster/input_data_version/other": "1"})
    known.record(
        asset, "g", tags={"dagster/code_version": "2-256-128", "dagster/input_data_version/clip_manifest": "1"}
    )
    assert known.tick() == "7 of 7 shards are captioned"


@pytest.mark.parametrize("asset", ["clip_manifest", "stage2_captions"])
def test_somebody_elses_record_of_a_table_that_is_not_stored_is_not_believed(known: Site, asset: str) -> None:
    captioned(known, *"abdef")
    known.record("clip_manifest", "c")
    known.record("stage1_captions", "c")
    known.record("stage2_captions", "c")
    assert ranges(known.tick(), "clip_manifest") == [("c", "c")]


def test_an_observation_without_version_is_mended_by_the_sensor_and_outdates_nothing(known: Site) -> None:
    captioned(known, *"abcdef")
    known.instance.report_runless_asset_event(dg.AssetObservation(known.project.shards, partition="c"))
    known.tick()
    known.look()
    assert known.tick() == "6 of 6 shards are captioned"


def test_a_materialization_of_the_external_asset_says_nothing_about_its_shards(known: Site) -> None:
    captioned(known, *"abcdef")
    known.instance.report_runless_asset_event(dg.AssetMaterialization(known.project.shards, partition="c"))
    known.instance.report_runless_asset_event(dg.AssetMaterialization(known.project.shards))
    assert known.tick() == "6 of 6 shards are captioned"


def test_checks_of_other_assets_and_records_without_partition_say_nothing(known: Site) -> None:
    captioned(known, *"abcdef")
    for asset in ("shards", "clip_manifest", "stage2_captions"):
        key = known.project.key(asset)
        known.instance.report_runless_asset_event(dg.AssetCheckEvaluation(key, "mine", passed=True, partition="c"))
        known.instance.report_runless_asset_event(dg.AssetObservation(key, partition="c"))
        known.instance.report_runless_asset_event(dg.AssetMaterialization(key))
        known.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition="not a shard"))
    known.look()
    assert known.tick() == "6 of 6 shards are captioned"


def test_wiped_assets_are_recorded_again_from_what_is_stored(known: Site) -> None:
    captioned(known, *"abcdef")
    known.instance.wipe_assets([known.project.manifest, *known.project.stages])
    assert known.tick() == "6 of 6 shards are captioned"
    known.instance.wipe_assets([known.project.shards])
    assert known.tick() == "0 of 0 shards are captioned"
    known.look()
    assert known.tick() == "6 of 6 shards are captioned"


def test_what_a_killed_run_has_published_and_not_recorded_is_recorded(known: Site) -> None:
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        known.materialize(asset, *"abcdef", recorded=False)
    assert known.tick() == "6 of 6 shards are captioned"


def test_tables_that_are_not_stored_are_asked_for_whatever_the_records_say(known: Site) -> None:
    captioned(known, *"abcdef")
    known.lose("stage1_captions", "b")
    known.lose("stage2_captions", "d")
    known.lose("clip_manifest", "f")
    requests = known.tick()
    assert ranges(requests, "stage2_captions") == [("b", "d")]
    assert ranges(requests, "clip_manifest") == [("f", "f")]


def test_a_stored_table_of_another_manifest_is_not_taken_for_the_present_one(known: Site) -> None:
    captioned(known, *"abcdef")
    known.materialize("stage2_captions", "b", stage1_captions="0")
    known.record("stage2_captions", "b", tags={"dagster/data_version": "x"})
    assert ranges(known.tick(), "stage2_captions") == [("b", "b")]


def test_a_stored_table_without_versions_is_made_again_if_it_has_no_record(known: Site) -> None:
    captioned(known, *"abcdef")
    known.publish(STAGE2.name, "b", None)
    assert known.tick() == "6 of 6 shards are captioned"
    known.record("stage2_captions", "b")
    assert ranges(known.tick(), "stage2_captions") == [("b", "b")]


def test_a_stored_table_that_fails_a_check_is_asked_for_again(known: Site) -> None:
    captioned(known, *"abcde")
    known.materialize("clip_manifest", "f")
    known.materialize("stage1_captions", "f")
    known.materialize("stage2_captions", "f", recorded=False)
    row = CaptionRow("a.mp4", 0, "id", 0.0, 1.0, Status.FAILED, error_kind="poison", error="x", attempts=1)
    versions = read_versions(known.root, STAGE2.name, "f")
    assert versions
    publish_captions(known.root, STAGE2.name, "f", [row], [row.key], versions.facts)
    assert ranges(known.tick(), "stage2_captions") == [("f", "f")]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
def test_a_damaged_table_is_asked_for_again_and_stops_no_other(known: Site, content: bytes) -> None:
    captioned(known, *"abcdef")
    known.root.write("clip_manifest/shard=c/manifest.parquet", content)
    known.record("clip_manifest", "c")
    assert ranges(known.tick(), "clip_manifest") == [("c", "c")]


@pytest.mark.parametrize("schema", ["1", str(int(SCHEMA_VERSION) + 1), ""])
def test_a_manifest_of_another_schema_is_made_again_before_captions_are_asked_for(known: Site, schema: str) -> None:
    captioned(known, *"abcde")
    known.materialize("clip_manifest", "e", "f", code=f"{schema}-256-128")
    requests = known.tick()
    assert ranges(requests, "clip_manifest") == [("e", "f")]
    assert ranges(requests, "stage2_captions") == []
    known.materialize("clip_manifest", "e")
    assert ranges(known.tick(), "clip_manifest") == [("f", "f")]


def test_a_manifest_of_other_windows_is_left_alone(known: Site) -> None:
    captioned(known, *"abcdef")
    known.materialize("clip_manifest", "e", code=f"{SCHEMA_VERSION}-10.0s")
    assert known.tick() == "6 of 6 shards are captioned"


def test_an_empty_root_is_not_taken_for_lost_tables(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    (tmp_path / "site").mkdir()
    source = tmp_path / "site" / "shards"
    site = Site(tmp_path / "site", instance, source=str(source))
    site.add("a", "b")
    site.look()
    site.fetch_weights()
    captioned(site, "a", "b")
    away = site.settings.model_copy(update={"root": str(tmp_path / "not mounted")})
    (tmp_path / "not mounted" / "_runs").mkdir(parents=True)
    site.settings = away
    with pytest.raises(dg.DagsterError) as failed:
        site.tick()
    assert "is empty, though Dagster has records of 6 tables in it" in str(failed.value.__cause__)


def test_a_shard_that_is_not_in_the_source_at_this_moment_is_not_asked_for(known: Site) -> None:
    (known.source / "c.jsonl").unlink()
    assert ranges(known.tick(), "clip_manifest") == [("a", "b"), ("d", "f")]
    captioned(known, *"abdef")
    assert known.tick() == "5 of 6 shards are captioned; 1 are not in the source now: c"


def test_stored_tables_beyond_those_that_one_tick_looks_at_wait_for_the_next(
    known: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caption_assets.automation.backfill.MAX_COMPARED", 4)
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        known.materialize(asset, *"abcdef", recorded=False)
    assert known.tick() == "4 of 6 shards are captioned; 2 have stored tables that a later tick looks at"
    assert known.tick() == "6 of 6 shards are captioned"


def test_tables_beyond_those_that_one_tick_records_wait_for_the_next(
    known: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caption_assets.automation.backfill.RECORDING_SECONDS", 0)
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        known.materialize(asset, *"abcdef", recorded=False)
    assert known.tick() == "0 of 6 shards are captioned; 6 have stored tables that a later tick looks at"
    monkeypatch.undo()
    assert known.tick() == "6 of 6 shards are captioned"


def test_weights_that_somebody_else_recorded_are_recorded_again_from_what_is_stored(known: Site) -> None:
    known.materialize("clip_manifest", *"abcdef")
    for _ in range(5):
        known.instance.report_runless_asset_event(dg.AssetMaterialization(known.project.weights))
        assert ranges(known.tick(), "stage2_captions") == [("a", "f")]
    event = known.instance.get_latest_materialization_event(known.project.weights)
    assert event
    assert event.asset_materialization
    assert (event.asset_materialization.tags or {})["dagster/code_version"] == known.settings.variant.folder


def test_an_adapter_that_is_not_stored_is_asked_for(known: Site) -> None:
    known.materialize("clip_manifest", "a")
    known.settings = known.settings.model_copy(update={"lora": "someone/adapter", "lora_revision": "5" * 40})
    asked = [request.asset_selection for request in known.requests()]
    assert [dg.AssetKey("model_weights")] in asked
    lora = known.settings.adapter
    assert lora is not None
    manifest = WeightsManifest(lora.hub_id, lora.revision, ())
    known.root.write(f"weights/{lora.folder}/weights-manifest.json", manifest.to_json().encode())
    assert ranges(known.requests(), "stage2_captions") == [("a", "a")]
    event = known.instance.get_latest_materialization_event(known.project.weights)
    assert event
    assert event.asset_materialization
    code = (event.asset_materialization.tags or {})["dagster/code_version"]
    assert code == f"{known.settings.variant.folder}+lora--someone--adapter/{'5' * 40}"


def test_weights_that_are_not_stored_are_asked_for(known: Site) -> None:
    known.materialize("clip_manifest", "a")
    known.root.remove_folder("weights")
    requests = known.requests()
    assert [dg.AssetKey("model_weights")] in [request.asset_selection for request in requests]


def test_a_shard_that_lacks_one_stage_is_asked_for(known: Site) -> None:
    captioned(known, *"abcde")
    known.materialize("clip_manifest", "f")
    known.materialize("stage1_captions", "f")
    assert ranges(known.tick(), "stage2_captions") == [("f", "f")]


def test_what_is_under_way_is_not_asked_for_again(known: Site) -> None:
    for request in known.requests():
        known.launch(request, STARTED)
    assert known.tick() == "0 of 6 shards are captioned; 6 are under way"


def test_runs_that_people_launch_count_as_under_way(known: Site) -> None:
    by_hand = dg.RunRequest(tags={"dagster/partition": "c"})
    known.launch(by_hand, STARTED)
    assert ranges(known.tick(), "clip_manifest") == [("a", "b"), ("d", "f")]


def test_a_failing_shard_is_asked_for_as_often_as_allowed_until_it_changes(known: Site) -> None:
    captioned(known, *"abcde")
    for _ in range(known.settings.shard_attempts):
        [request] = known.requests()
        known.launch(request, FAILED)
    assert "1 were given up after 3 runs (CAPTION_SHARD_ATTEMPTS)" in str(known.tick())
    assert "f (clip_manifest)" in str(known.tick())
    known.add("f", content=b"mended")
    known.look()
    assert ranges(known.tick(), "clip_manifest") == [("f", "f")]


def test_a_removed_shard_is_not_asked_for(known: Site) -> None:
    (known.source / "c.jsonl").unlink()
    known.look()
    assert ranges(known.tick(), "clip_manifest") == [("a", "b"), ("d", "f")]


def test_no_more_shards_are_under_way_than_allowed(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    site = Site(tmp_path, instance, backfill_concurrency=3, shards_per_run=2)
    site.add(*"abcdef")
    site.look()
    site.fetch_weights()
    requests = site.requests()
    assert ranges(requests, "clip_manifest") == [("a", "b"), ("c", "c")]
    for request in requests:
        site.launch(request, STARTED)
    assert "3 are under way" in str(site.tick())


def test_a_cron_schedule_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="CAPTION_BACKFILL_CRON='hourly'"):
        build_backfill(Settings(backfill_cron="hourly"))


@given(st.data())
def test_every_wanted_shard_is_in_one_range_of_wanted_and_passable_ones(data: st.DataObject) -> None:
    order = [f"s{number}" for number in range(data.draw(st.integers(0, 30)))]
    kinds = {shard: data.draw(st.sampled_from(["wanted", "passable", "other"])) for shard in order}
    wanted = {shard for shard in order if kinds[shard] == "wanted"}
    passable = {shard for shard in order if kinds[shard] == "passable"}
    most = data.draw(st.integers(1, 5))

    found = list(stretches(order, wanted, passable, most))

    assert [shard for stretch in found for shard in stretch if shard in wanted] == [s for s in order if s in wanted]
    for stretch in found:
        first = order.index(stretch[0])
        assert stretch == order[first : first + len(stretch)]
        assert {stretch[0], stretch[-1]} <= wanted
        assert set(stretch) <= wanted | passable
        assert len(wanted.intersection(stretch)) <= most
        assert len(stretch) <= SPAN * most


def test_work_is_not_predicted_from_somebody_elses_metadata(known: Site) -> None:
    right = {"rows_ok": 10, "predicted_visual_tokens": 2000}
    wrong: list[dict[str, object] | None] = [
        None,
        {"rows_ok": 10},
        {**right, "rows_ok": -1},
        {**right, "predicted_visual_tokens": -10},
        {**right, "rows_ok": 10**15},
        {**right, "predicted_visual_tokens": 10**15},
        {**right, "rows_ok": "ten"},
        {**right, "rows_ok": float("nan")},
        {**right, "rows_ok": float("inf")},
        {**right, "rows_ok": 1.5},
        {**right, "rows_ok": {"n": 1}},
    ]
    known.materialize("clip_manifest", "a", metadata=right)
    [good] = events(known, "a")
    assert predicted_work(known.instance, known.project, [good]) == (10, 2000)
    for metadata in wrong:
        known.materialize("clip_manifest", "b", metadata=metadata)
        [bad] = events(known, "b")
        assert predicted_work(known.instance, known.project, [good, bad]) is None
    assert predicted_work(known.instance, known.project, [good, bad + 1]) is None


def events(site: Site, shard: str) -> list[int]:
    """The event that recorded a shard's manifest."""
    return [read_records(site.instance, site.project, CLIP_MANIFEST, [shard])[shard].event]


def test_a_pod_has_its_default_size_where_the_metadata_is_somebody_elses(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    site = Site(tmp_path, instance, executor="k8s")
    site.add("a")
    site.look()
    site.fetch_weights()
    site.materialize("clip_manifest", "a", metadata={"rows_ok": -1})
    [request] = site.requests()
    assert request.run_config == {}


def test_a_pod_is_as_large_as_the_work_that_the_manifests_tell(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    def memory(windows: int) -> int:
        site.materialize("clip_manifest", "a", metadata={"rows_ok": windows, "predicted_visual_tokens": 200 * windows})
        [request] = site.requests()
        [step] = request.run_config["execution"]["config"]["per_step_k8s_config"].values()
        return int(step["container_config"]["resources"]["requests"]["memory"].removesuffix("Mi"))

    site = Site(tmp_path, instance, executor="k8s")
    site.add("a")
    site.look()
    site.fetch_weights()
    assert memory(10) < memory(1000)
