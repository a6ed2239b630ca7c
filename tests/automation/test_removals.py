from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.assets.shard_index import observed_versions
from caption_assets.automation.removals import RemovalError, confirm_removals, find_removals
from caption_assets.automation.retire import removed_shards
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from tests.automation.conftest import Site
from tests.automation.test_alerts import webhook

pytestmark = pytest.mark.fast

SHARDS = [f"s{number}" for number in range(10)]


@pytest.fixture
def ten(site: Site) -> Site:
    """Ten registered shards."""
    site.add(*SHARDS)
    site.look()
    return site


def remove(site: Site, *shards: str) -> None:
    for shard in shards:
        (site.source / f"{shard}.jsonl").unlink()


def removed(site: Site) -> list[str]:
    return removed_shards(site.instance, site.project)


def message(result: dg.SensorResult) -> str:
    """What a tick says."""
    assert isinstance(result.skip_reason, dg.SkipReason)
    return str(result.skip_reason.skip_message)


def passed(result: dg.SensorResult) -> list[bool]:
    """What the check said, if it was made."""
    return [event.passed for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)]


def test_an_empty_mount_is_an_alarm_and_changes_nothing_until_it_is_back(ten: Site) -> None:
    before = observed_versions(ten.instance, ten.project)
    shutil.move(ten.source, ten.source.with_name("away"))
    ten.source.mkdir()
    result = ten.look()
    assert f"10 of 10 registered shards are not in the source {str(ten.source)!r} (it has no shards)" in message(result)
    assert passed(result) == [False]
    assert passed(ten.look()) == []
    assert observed_versions(ten.instance, ten.project) == before
    ten.source.rmdir()
    shutil.move(ten.source.with_name("away"), ten.source)
    assert passed(ten.look()) == [True]
    assert observed_versions(ten.instance, ten.project) == before


def test_the_last_shards_may_not_go_unconfirmed_whatever_the_setting(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    site = Site(tmp_path, instance, max_removed_fraction=1)
    site.add("a", "b")
    site.look()
    remove(site, "a")
    site.look()
    assert removed(site) == ["a"]
    remove(site, "b")
    assert "2 of 2 registered shards are not in the source" in message(site.look())
    assert removed(site) == ["a"]


def test_more_than_the_fraction_at_once_is_an_alarm_and_up_to_it_is_none(ten: Site) -> None:
    remove(ten, "s1", "s2", "s3")
    assert "3 of 10 registered shards" in message(ten.look())
    assert removed(ten) == []
    ten.add("s3")
    ten.look()
    assert removed(ten) == ["s1", "s2"]


def test_shards_that_go_a_few_at_a_time_raise_the_alarm_too(ten: Site) -> None:
    for shard in SHARDS[:6]:
        remove(ten, shard)
        ten.look()
    assert removed(ten) == ["s0", "s1"]
    assert "6 of 10 registered shards" in message(ten.look())


def test_a_confirmed_removal_is_reported_and_counts_no_more(ten: Site) -> None:
    remove(ten, *SHARDS[:5])
    ten.look()
    assert "5 registered shards are not in the source" in confirm_removals(ten.instance, ten.settings, None)
    with pytest.raises(RemovalError, match="the number to confirm is 5, not 4"):
        confirm_removals(ten.instance, ten.settings, 4)
    assert removed(ten) == []
    confirm_removals(ten.instance, ten.settings, 5)
    assert removed(ten) == SHARDS[:5]
    assert passed(ten.look()) == [True]
    remove(ten, "s5")
    ten.look()
    assert removed(ten) == SHARDS[:6]


def test_shards_that_were_reported_before_are_confirmed_with_the_others(ten: Site) -> None:
    remove(ten, "s0", "s1")
    ten.look()
    remove(ten, "s2")
    ten.look()
    confirm_removals(ten.instance, ten.settings, 3)
    assert set(observed_versions(ten.instance, ten.project).values()) >= {"removed, confirmed"}
    assert "0 registered shards" in confirm_removals(ten.instance, ten.settings, None)


def test_a_shard_that_comes_back_after_its_removal_was_confirmed_is_observed_again(ten: Site) -> None:
    before = observed_versions(ten.instance, ten.project)
    remove(ten, *SHARDS[:5])
    ten.look()
    confirm_removals(ten.instance, ten.settings, 5)
    ten.add(*SHARDS[:5])
    ten.look()
    assert observed_versions(ten.instance, ten.project).keys() == before.keys()
    assert removed(ten) == []


def test_a_shard_that_comes_back_unchanged_outdates_nothing(ten: Site) -> None:
    ten.fetch_weights()
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        ten.materialize(asset, *SHARDS)
    away = ten.source / "s1.away"
    (ten.source / "s1.jsonl").rename(away)
    ten.look()
    assert ten.tick() == "9 of 9 shards are captioned"
    away.rename(ten.source / "s1.jsonl")
    ten.look()
    assert ten.tick() == "10 of 10 shards are captioned"


def test_the_schedule_asks_for_nothing_of_shards_that_an_alarm_is_about(ten: Site) -> None:
    ten.fetch_weights()
    remove(ten, *SHARDS[1:])
    ten.look()
    [request] = ten.requests()
    assert request.tags["dagster/asset_partition_range_end"] == "s0"


def test_people_are_told_of_an_alarm_once(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    with webhook() as (url, texts):
        site = Site(tmp_path, instance, alert_webhook=url)
        site.add(*SHARDS)
        site.look()
        remove(site, *SHARDS[1:])
        for _ in range(3):
            site.look()
        assert len(texts) == 1
        assert "--confirm 9" in texts[0]
        site.add(*SHARDS)
        site.look()
        remove(site, *SHARDS[5:])
        site.look()
    assert "--confirm 5" in texts[1]


def test_an_alarm_that_does_not_reach_its_target_is_sent_again_and_stops_no_tick(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    with webhook(500) as (url, texts):
        site = Site(tmp_path, instance, alert_webhook=url)
        site.add(*SHARDS)
        site.look()
        remove(site, *SHARDS[1:])
        site.add("new")
        assert passed(site.look()) == []
        site.look()
    assert len(texts) == 2
    assert "new" in site.registered


@given(st.data())
def test_nothing_is_reported_beyond_the_limit_whatever_was_reported_before(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    registered = [str(number) for number in range(count)]
    states = {shard: data.draw(st.sampled_from(["x", "removed", "removed, confirmed"])) for shard in registered}
    present = {shard for shard in registered if data.draw(st.booleans())}
    limit = data.draw(st.floats(0, 1))

    found = find_removals(Settings(max_removed_fraction=limit), Root.open("x"), registered, states, present)

    absent = [shard for shard in registered if shard not in present]
    unconfirmed = [shard for shard in absent if states[shard] != "removed, confirmed"]
    if found.alarm is None and found.new:
        assert present
        assert len(unconfirmed) <= limit * (count - len(absent) + len(unconfirmed))
    assert found.unconfirmed == sorted(unconfirmed)
