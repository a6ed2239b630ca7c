from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.automation.backfill import SPAN, build_backfill, stretches
from caption_assets.settings import Settings, SettingsError
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
    site = Site(tmp_path, instance, backfill_shards=3, shards_per_run=2)
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
