from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from caption_assets.automation import status_report
from caption_assets.automation.status_report import build_status_report
from caption_assets.resources import build_storage
from tests.automation.conftest import AutomationHarness
from tests.automation.test_shard_status import captioned as captioned  # a fixture
from tests.recipes import write_recipe

pytestmark = pytest.mark.fast

AssetEvent = dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation
ROWS = {"rows_ok": 5, "rows_failed": 1}


class Sensor:
    """Ticks of the sensor, whose events are reported as the daemon does."""

    def __init__(self, harness: AutomationHarness) -> None:
        self._harness = harness
        self._cursor: str | None = None

    def tick(self) -> list[AssetEvent]:
        harness = self._harness
        with dg.build_sensor_context(harness.instance, cursor=self._cursor) as context:
            result = build_status_report(harness.settings)(context, storage=build_storage(harness.settings))
        if isinstance(result, dg.SkipReason):
            return []
        assert isinstance(result, dg.SensorResult)
        for event in result.asset_events:
            harness.instance.report_runless_asset_event(event)
        self._cursor = result.cursor
        return list(result.asset_events)

    def explained(self) -> list[str]:
        """The partitions that a tick explains."""
        events = [event for event in self.tick() if isinstance(event, dg.AssetObservation)]
        return [f"{event.asset_key.to_user_string()} {event.partition}" for event in events]


@pytest.fixture
def sensor(captioned: AutomationHarness, monkeypatch: pytest.MonkeyPatch) -> Sensor:
    """The sensor over captioned shards; it has reported them as complete, and reports again at every tick."""
    monkeypatch.setattr(status_report, "REPORT_SECONDS", 0)
    sensor = Sensor(captioned)
    [event] = sensor.tick()
    assert isinstance(event, dg.AssetMaterialization)
    return sensor


def totals(harness: AutomationHarness) -> dict[str, object]:
    """The metadata of the latest materialization of ``shard_index``."""
    event = harness.instance.get_latest_materialization_event(harness.project.shard_index)
    assert event
    assert event.asset_materialization
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def change_prompt(harness: AutomationHarness, tmp_path: Path, **prompts: str) -> None:
    harness.use_recipe(str(write_recipe(tmp_path / "-".join(["recipe", *prompts.values()]), **prompts)))


def test_totals_are_reported_once_beside_the_other_metadata(sensor: Sensor, captioned: AutomationHarness) -> None:
    found = totals(captioned)
    assert [found[f"shards_{state}"] for state in ("complete", "stale", "failed", "missing")] == [3, 0, 0, 0]
    assert "| alignment | 3 | 0 | 0 | 0 | 15 | 3 |" in str(found["status"])
    assert found["new"] == ["a", "b", "c"]
    assert sensor.tick() == []


def test_new_totals_are_reported(sensor: Sensor, captioned: AutomationHarness) -> None:
    captioned.add("d")
    captioned.run_sensor()
    assert len(sensor.tick()) == 1
    assert (totals(captioned)["shards_missing"], totals(captioned)["shards"]) == (1, 4)


def test_changed_prompt_is_explained_on_each_stale_partition_once(
    sensor: Sensor, captioned: AutomationHarness, tmp_path: Path
) -> None:
    change_prompt(captioned, tmp_path, stage2="Shorten: {stage1_captions}")
    events = sensor.tick()
    observations = [event for event in events if isinstance(event, dg.AssetObservation)]
    assert [(event.asset_key.to_user_string(), event.partition) for event in observations] == [
        *(("stage2_captions", shard) for shard in "abc"),
        *(("alignment", shard) for shard in "abc"),
    ]
    assert observations[0].description == "Stale: prompt changed"
    assert str(observations[0].metadata["stale_because"].value).splitlines()[2:] == [
        "| prompt | Improve: {stage1_captions} | Shorten: {stage1_captions} |"
    ]
    assert str(observations[3].metadata["stale_because"].value).splitlines()[2:] == [
        "| prompt of stage2_captions | Improve: {stage1_captions} | Shorten: {stage1_captions} |",
        "| stage2_captions | current | not current |",
    ]
    assert totals(captioned)["shards_stale"] == 3
    assert "prompt of stage2_captions changed" in str(totals(captioned)["stale_tables"])
    assert sensor.tick() == []


def test_partition_is_explained_anew_after_another_change(
    sensor: Sensor, captioned: AutomationHarness, tmp_path: Path
) -> None:
    change_prompt(captioned, tmp_path, alignment="Right? {stage2_captions}")
    assert sensor.explained() == ["alignment a", "alignment b", "alignment c"]
    change_prompt(captioned, tmp_path, alignment="True? {stage2_captions}")
    assert sensor.explained() == ["alignment a", "alignment b", "alignment c"]
    captioned.add("b", content=b"{} ")
    captioned.run_sensor()
    assert sensor.explained() == ["clip_manifest b", "alignment b"]
    captioned.materialize("alignment", "a", metadata=ROWS)
    assert sensor.explained() == []


def test_many_partitions_are_explained_in_several_ticks(
    sensor: Sensor, captioned: AutomationHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_report, "MAX_EVENTS", 2)
    change_prompt(captioned, tmp_path, attributes="Name both.")
    assert [sensor.explained() for _ in range(3)] == [["attributes a", "attributes b"], ["attributes c"], []]


def test_tick_without_changes_reads_no_status(captioned: AutomationHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = Sensor(captioned)
    assert len(sensor.tick()) == 1
    monkeypatch.setattr(status_report, "read_statuses", lambda *_: pytest.fail("read"))
    assert sensor.tick() == []
