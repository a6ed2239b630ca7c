from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.automation.commands import NotConfirmed
from caption_assets.automation.removals import confirm_removals, find_removals
from caption_assets.automation.retire import removed_shards
from caption_assets.dagster_lib.shard_events import observed_versions
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from tests.automation.conftest import AutomationHarness
from tests.automation.test_alerts import webhook

pytestmark = pytest.mark.fast

SHARDS = [f"s{number}" for number in range(10)]


@pytest.fixture
def ten_shards(harness: AutomationHarness) -> AutomationHarness:
    """Ten registered shards."""
    harness.add(*SHARDS)
    harness.run_sensor()
    return harness


def remove(harness: AutomationHarness, *shards: str) -> None:
    for shard in shards:
        (harness.source / f"{shard}.jsonl").unlink()


def removed(harness: AutomationHarness) -> list[str]:
    return removed_shards(harness.instance, harness.project)


def message(result: dg.SensorResult) -> str:
    """The message of a tick."""
    assert isinstance(result.skip_reason, dg.SkipReason)
    return str(result.skip_reason.skip_message)


def passed(result: dg.SensorResult) -> list[bool]:
    """The results of the check, if it was evaluated."""
    return [event.passed for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)]


def test_empty_mount_raises_an_alarm_and_changes_nothing(ten_shards: AutomationHarness) -> None:
    before = observed_versions(ten_shards.instance, ten_shards.project)
    shutil.move(ten_shards.source, ten_shards.source.with_name("unmounted"))
    ten_shards.source.mkdir()
    result = ten_shards.run_sensor()
    assert f"10 of 10 registered shards are not in the source {str(ten_shards.source)!r} (it has no shards)" in message(
        result
    )
    assert passed(result) == [False]
    assert passed(ten_shards.run_sensor()) == []
    assert observed_versions(ten_shards.instance, ten_shards.project) == before
    ten_shards.source.rmdir()
    shutil.move(ten_shards.source.with_name("unmounted"), ten_shards.source)
    assert passed(ten_shards.run_sensor()) == [True]
    assert observed_versions(ten_shards.instance, ten_shards.project) == before


def test_last_shards_need_confirmation_with_any_limit(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    harness = AutomationHarness(tmp_path, instance, max_removed_fraction=1)
    harness.add("a", "b")
    harness.run_sensor()
    remove(harness, "a")
    harness.run_sensor()
    assert removed(harness) == ["a"]
    remove(harness, "b")
    assert "2 of 2 registered shards are not in the source" in message(harness.run_sensor())
    assert removed(harness) == ["a"]


def test_alarm_is_raised_beyond_the_fraction_only(ten_shards: AutomationHarness) -> None:
    remove(ten_shards, "s1", "s2", "s3")
    assert "3 of 10 registered shards" in message(ten_shards.run_sensor())
    assert removed(ten_shards) == []
    ten_shards.add("s3")
    ten_shards.run_sensor()
    assert removed(ten_shards) == ["s1", "s2"]


def test_shards_removed_a_few_at_a_time_raise_the_alarm(ten_shards: AutomationHarness) -> None:
    for shard in SHARDS[:6]:
        remove(ten_shards, shard)
        ten_shards.run_sensor()
    assert removed(ten_shards) == ["s0", "s1"]
    assert "6 of 10 registered shards" in message(ten_shards.run_sensor())


def test_confirmed_removal_is_reported_and_no_longer_counts(ten_shards: AutomationHarness) -> None:
    remove(ten_shards, *SHARDS[:5])
    ten_shards.run_sensor()
    assert "5 registered shards are not in the source" in confirm_removals(
        ten_shards.instance, ten_shards.settings, None
    )
    with pytest.raises(NotConfirmed, match="the number to confirm is 5, not 4"):
        confirm_removals(ten_shards.instance, ten_shards.settings, 4)
    assert removed(ten_shards) == []
    confirm_removals(ten_shards.instance, ten_shards.settings, 5)
    assert removed(ten_shards) == SHARDS[:5]
    assert passed(ten_shards.run_sensor()) == [True]
    remove(ten_shards, "s5")
    ten_shards.run_sensor()
    assert removed(ten_shards) == SHARDS[:6]


def test_confirmation_includes_shards_reported_earlier(ten_shards: AutomationHarness) -> None:
    remove(ten_shards, "s0", "s1")
    ten_shards.run_sensor()
    remove(ten_shards, "s2")
    ten_shards.run_sensor()
    confirm_removals(ten_shards.instance, ten_shards.settings, 3)
    assert set(observed_versions(ten_shards.instance, ten_shards.project).values()) >= {"removed, confirmed"}
    assert "0 registered shards" in confirm_removals(ten_shards.instance, ten_shards.settings, None)


def test_shard_that_returns_after_confirmation_is_observed_again(ten_shards: AutomationHarness) -> None:
    before = observed_versions(ten_shards.instance, ten_shards.project)
    remove(ten_shards, *SHARDS[:5])
    ten_shards.run_sensor()
    confirm_removals(ten_shards.instance, ten_shards.settings, 5)
    ten_shards.add(*SHARDS[:5])
    ten_shards.run_sensor()
    assert observed_versions(ten_shards.instance, ten_shards.project).keys() == before.keys()
    assert removed(ten_shards) == []


def test_shard_that_returns_unchanged_stays_captioned(ten_shards: AutomationHarness) -> None:
    ten_shards.store_weights()
    for asset in ("clip_manifest", "stage1_captions", "stage2_captions"):
        ten_shards.materialize(asset, *SHARDS)
    moved = ten_shards.source / "s1.removed"
    (ten_shards.source / "s1.jsonl").rename(moved)
    ten_shards.run_sensor()
    assert ten_shards.run_schedule() == "9 of 9 shards are captioned"
    moved.rename(ten_shards.source / "s1.jsonl")
    ten_shards.run_sensor()
    assert ten_shards.run_schedule() == "10 of 10 shards are captioned"


def test_schedule_does_not_request_shards_of_an_alarm(ten_shards: AutomationHarness) -> None:
    ten_shards.store_weights()
    remove(ten_shards, *SHARDS[1:])
    ten_shards.run_sensor()
    [request] = ten_shards.run_requests()
    assert request.tags["dagster/asset_partition_range_end"] == "s0"


def test_alarm_is_sent_once(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    with webhook() as (url, texts):
        harness = AutomationHarness(tmp_path, instance, alert_webhook=url)
        harness.add(*SHARDS)
        harness.run_sensor()
        remove(harness, *SHARDS[1:])
        for _ in range(3):
            harness.run_sensor()
        assert len(texts) == 1
        assert "--confirm 9" in texts[0]
        harness.add(*SHARDS)
        harness.run_sensor()
        remove(harness, *SHARDS[5:])
        harness.run_sensor()
    assert "--confirm 5" in texts[1]


def test_undelivered_alarm_is_sent_again_without_failing_the_tick(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    with webhook(500) as (url, texts):
        harness = AutomationHarness(tmp_path, instance, alert_webhook=url)
        harness.add(*SHARDS)
        harness.run_sensor()
        remove(harness, *SHARDS[1:])
        harness.add("new")
        assert passed(harness.run_sensor()) == []
        harness.run_sensor()
    assert len(texts) == 2
    assert "new" in harness.registered


@given(st.data())
def test_reported_removals_stay_within_the_limit(data: st.DataObject) -> None:
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
