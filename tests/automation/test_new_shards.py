from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.assets.shard_index import observed_versions
from tests.automation.conftest import Site

pytestmark = pytest.mark.fast


def test_shards_are_registered_in_order_with_their_content(site: Site) -> None:
    site.add("b", "a")
    site.touch("c/clip.mp4", b"film")
    site.look()
    assert site.registered == ["a", "b", "c"]
    assert observed_versions(site.instance, site.project).keys() == {"a", "b", "c"}


def test_a_look_at_what_is_known_reports_nothing(site: Site) -> None:
    site.add("a", "b")
    site.look()
    again = site.look()
    assert not again.asset_events
    assert not again.dynamic_partitions_requests
    assert "nothing new in the 2 shards looked at" in str(again.skip_reason)


def test_a_changed_shard_is_reported_alone(site: Site) -> None:
    site.add("a", "b")
    site.look()
    before = observed_versions(site.instance, site.project)
    site.add("b", content=b"other")
    [event] = site.look().asset_events
    assert event.partition == "b"
    after = observed_versions(site.instance, site.project)
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


def test_a_shard_that_was_just_written_to_is_left_alone(site: Site) -> None:
    site.add("a", minutes_ago=0.5)
    result = site.look()
    assert not site.registered
    assert "a waits: it was written to 30 s ago" in str(result.skip_reason)


def test_a_modification_time_in_the_future_is_told_and_hides_no_shard(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.add("a", minutes_ago=-60 * 24 * 365)
    site.add("b", minutes_ago=-1)
    site.look()
    assert site.registered == ["a"]
    assert "modification times in the future, in shards a: set the clock" in capsys.readouterr().err
    assert re.search(r"b waits: its time is \d+ s ahead", str(site.look().skip_reason))


def test_what_is_passed_over_is_told(site: Site) -> None:
    site.touch("loose.mp4")
    site.touch("a.tar.gz")
    assert re.search(
        r"; passed over: videos outside a shard .*: 1 \(loose.mp4\), archives .*: 1 \(a.tar.gz\)",
        str(site.look().skip_reason),
    )


def test_an_empty_folder_is_left_alone(site: Site) -> None:
    (site.source / "a").mkdir()
    assert "a waits: it is empty" in str(site.look().skip_reason)


@pytest.mark.parametrize(("file", "marker"), [("a/clip.mp4", "a/_SUCCESS"), ("a.jsonl", "a.jsonl._SUCCESS")])
def test_a_shard_without_its_marker_is_left_alone(
    tmp_path: Path, instance: dg.DagsterInstance, file: str, marker: str
) -> None:
    site = Site(tmp_path, instance, shard_marker="_SUCCESS")
    site.touch(file, b"x")
    assert f"{marker} is not there" in str(site.look().skip_reason)
    site.touch(marker)
    site.look()
    assert site.registered == ["a"]


def test_a_name_that_is_no_key_stops_no_other(site: Site) -> None:
    site.add("a", "b,c")
    site.look()
    assert site.registered == ["a"]


def test_a_shard_that_has_gone_is_reported_once_and_again_when_it_is_back(site: Site) -> None:
    site.add(*"abcdef")
    site.look()
    before = observed_versions(site.instance, site.project)
    (site.source / "a.jsonl").rename(site.source / "a.away")
    [event] = site.look().asset_events
    assert (event.partition, observed_versions(site.instance, site.project)["a"]) == ("a", "removed")
    assert not site.look().asset_events
    (site.source / "a.away").rename(site.source / "a.jsonl")
    site.look()
    assert observed_versions(site.instance, site.project) == before


def test_a_shard_whose_double_has_come_has_not_gone(site: Site) -> None:
    site.add("a")
    site.look()
    site.touch("a.tar", b"x")
    assert not site.look().asset_events


def test_a_tick_that_has_no_more_time_is_gone_on_with_by_the_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_assets.automation.new_shards.MOST_EVENTS", 2)
    site.add("a", "b", "c", "d", "e")
    for expected in (["a", "b"], ["a", "b", "c", "d"], ["a", "b", "c", "d", "e"]):
        site.look()
        assert site.registered == expected


def test_a_missing_source_fails_the_tick_with_the_remedy(site: Site) -> None:
    site.source.rmdir()
    with pytest.raises(Exception, match="set CAPTION_SOURCE"):
        site.look()


def test_the_cursor_of_an_earlier_release_is_gone_on_from(site: Site) -> None:
    site.add("1", "2", "3")
    for cursor in ("2", "x", "null", "true", "[]", '{"after": "2"}', ""):
        site.cursor = cursor
        site.look()
    assert site.registered == ["1", "2", "3"]


def test_registered_shards_and_the_index_count_as_there_in_the_ui(site: Site) -> None:
    shards, index = dg.AssetKey("shards"), dg.AssetKey("shard_index")
    site.add("a", "b")
    site.look()
    site.look()
    assert site.instance.get_materialized_partitions(shards) == {"a", "b"}
    [look] = site.instance.fetch_materializations(index, limit=10).records
    assert look.asset_materialization is not None
    assert look.asset_materialization.metadata["new"].value == ["a", "b"]
    site.add("c")
    site.look()
    assert site.instance.get_materialized_partitions(shards) == {"a", "b", "c"}
    assert len(site.instance.fetch_materializations(index, limit=10).records) == 2


def test_shards_that_an_earlier_release_registered_are_recorded_once_and_removed_ones_never(site: Site) -> None:
    site.instance.add_dynamic_partitions("shards", ["a", "gone"])
    for shard, version in (("a", "1"), ("gone", "removed")):
        event = dg.AssetObservation("shards", partition=shard, tags={"dagster/data_version": version})
        site.instance.report_runless_asset_event(event)
    site.add("a")
    for _ in range(3):
        site.look()
    records = site.instance.fetch_materializations(dg.AssetKey("shards"), limit=10).records
    assert [record.partition_key for record in records] == ["a"]
