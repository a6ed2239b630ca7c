from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.dagster_lib.shard_events import observed_versions
from tests.automation.conftest import AutomationHarness

pytestmark = pytest.mark.fast


def test_shards_are_registered_in_order_with_their_version(harness: AutomationHarness) -> None:
    harness.add("b", "a")
    harness.write_file("c/clip.mp4", b"video")
    harness.run_sensor()
    assert harness.registered == ["a", "b", "c"]
    assert observed_versions(harness.instance, harness.project).keys() == {"a", "b", "c"}


def test_unchanged_shards_report_nothing(harness: AutomationHarness) -> None:
    harness.add("a", "b")
    harness.run_sensor()
    again = harness.run_sensor()
    assert not again.asset_events
    assert not again.dynamic_partitions_requests
    assert "no changes in 2 scanned shards" in str(again.skip_reason)


def test_changed_shard_is_reported_alone(harness: AutomationHarness) -> None:
    harness.add("a", "b")
    harness.run_sensor()
    before = observed_versions(harness.instance, harness.project)
    harness.add("b", content=b"other")
    [event] = harness.run_sensor().asset_events
    assert event.partition == "b"
    after = observed_versions(harness.instance, harness.project)
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


def test_recently_written_shard_is_not_registered(harness: AutomationHarness) -> None:
    harness.add("a", minutes_ago=0.5)
    result = harness.run_sensor()
    assert not harness.registered
    assert "a is not ready: written 30 s ago" in str(result.skip_reason)


def test_modification_time_in_the_future_is_logged_and_delays_no_shard(
    harness: AutomationHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.add("a", minutes_ago=-60 * 24 * 365)
    harness.add("b", minutes_ago=-1)
    harness.run_sensor()
    assert harness.registered == ["a"]
    assert "modification times in the future in shards a: " in capsys.readouterr().err
    assert re.search(r"b is not ready: modified \d+ s in the future", str(harness.run_sensor().skip_reason))


def test_message_names_skipped_entries(harness: AutomationHarness) -> None:
    harness.write_file("loose.mp4")
    harness.write_file("a.tar.gz")
    assert re.search(
        r"; skipped: videos outside a shard .*: 1 \(loose.mp4\), archives .*: 1 \(a.tar.gz\)",
        str(harness.run_sensor().skip_reason),
    )


def test_empty_folder_is_not_registered(harness: AutomationHarness) -> None:
    (harness.source / "a").mkdir()
    assert "a is not ready: empty" in str(harness.run_sensor().skip_reason)


@pytest.mark.parametrize(("file", "marker"), [("a/clip.mp4", "a/_SUCCESS"), ("a.jsonl", "a.jsonl._SUCCESS")])
def test_shard_without_its_marker_is_not_registered(
    tmp_path: Path, instance: dg.DagsterInstance, file: str, marker: str
) -> None:
    harness = AutomationHarness(tmp_path, instance, shard_marker="_SUCCESS")
    harness.write_file(file, b"x")
    assert f"{marker} does not exist" in str(harness.run_sensor().skip_reason)
    harness.write_file(marker)
    harness.run_sensor()
    assert harness.registered == ["a"]


def test_invalid_name_stops_no_other_shard(harness: AutomationHarness) -> None:
    harness.add("a", "b,c")
    harness.run_sensor()
    assert harness.registered == ["a"]


def test_removed_shard_is_reported_once_and_again_on_return(harness: AutomationHarness) -> None:
    harness.add(*"abcdef")
    harness.run_sensor()
    before = observed_versions(harness.instance, harness.project)
    (harness.source / "a.jsonl").rename(harness.source / "a.away")
    [event] = harness.run_sensor().asset_events
    assert (event.partition, observed_versions(harness.instance, harness.project)["a"]) == ("a", "removed")
    assert not harness.run_sensor().asset_events
    (harness.source / "a.away").rename(harness.source / "a.jsonl")
    harness.run_sensor()
    assert observed_versions(harness.instance, harness.project) == before


def test_shard_with_a_duplicate_is_not_reported_as_removed(harness: AutomationHarness) -> None:
    harness.add("a")
    harness.run_sensor()
    harness.write_file("a.tar", b"x")
    assert not harness.run_sensor().asset_events


def test_next_tick_continues_after_the_event_limit(harness: AutomationHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_assets.automation.new_shards.MAX_EVENTS", 2)
    harness.add("a", "b", "c", "d", "e")
    for expected in (["a", "b"], ["a", "b", "c", "d"], ["a", "b", "c", "d", "e"]):
        harness.run_sensor()
        assert harness.registered == expected


def test_missing_source_fails_the_tick_with_a_remedy(harness: AutomationHarness) -> None:
    harness.source.rmdir()
    with pytest.raises(Exception, match="set CAPTION_SOURCE"):
        harness.run_sensor()


def test_cursor_of_an_earlier_release_is_read(harness: AutomationHarness) -> None:
    harness.add("1", "2", "3")
    for cursor in ("2", "x", "null", "true", "[]", '{"after": "2"}', ""):
        harness.cursor = cursor
        harness.run_sensor()
    assert harness.registered == ["1", "2", "3"]


def test_registered_shards_and_the_index_are_materialized(harness: AutomationHarness) -> None:
    shards, index = dg.AssetKey("shards"), dg.AssetKey("shard_index")
    harness.add("a", "b")
    harness.run_sensor()
    harness.run_sensor()
    assert harness.instance.get_materialized_partitions(shards) == {"a", "b"}
    [record] = harness.instance.fetch_materializations(index, limit=10).records
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["new"].value == ["a", "b"]
    harness.add("c")
    harness.run_sensor()
    assert harness.instance.get_materialized_partitions(shards) == {"a", "b", "c"}
    assert len(harness.instance.fetch_materializations(index, limit=10).records) == 2


def test_shards_of_an_earlier_release_are_recorded_once_unless_removed(harness: AutomationHarness) -> None:
    harness.instance.add_dynamic_partitions("shards", ["a", "gone"])
    for shard, version in (("a", "1"), ("gone", "removed")):
        event = dg.AssetObservation("shards", partition=shard, tags={"dagster/data_version": version})
        harness.instance.report_runless_asset_event(event)
    harness.add("a")
    for _ in range(3):
        harness.run_sensor()
    records = harness.instance.fetch_materializations(dg.AssetKey("shards"), limit=10).records
    assert [record.partition_key for record in records] == ["a"]
