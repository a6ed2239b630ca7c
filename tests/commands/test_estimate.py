from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from caption_assets.captioning.recipe import Recipe
from caption_assets.commands.estimate import Estimate, estimate, table
from caption_assets.commands.rate import given_rate
from caption_assets.commands.selection import UnknownName
from caption_assets.commands.spread import spread
from caption_assets.commands.workload import Workload, sample_workload
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST
from caption_assets.video.window import Windowing
from tests.automation.conftest import AutomationHarness
from tests.cli import run_cli
from tests.conftest import SANDBOX
from tests.stages import STAGE1, STAGE2
from tests.videos import moving_video

pytestmark = pytest.mark.fast

BOTH = (STAGE1.name, STAGE2.name)
COUNTS = {"rows_ok": 100, "predicted_visual_tokens": 20_000, "hours": 0.5}
"""Metadata of a manifest."""


@pytest.fixture(autouse=True)
def home(harness: AutomationHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", harness.instance.root_directory)


def estimated(harness: AutomationHarness, *shards: str, again: bool = False, rate: float | None = None) -> Estimate:
    return estimate(harness.settings, shards, again=again, rate=rate)


def caption(harness: AutomationHarness, shard: str, *, rows: int, seconds: float, start: float, **other: Any) -> None:
    """Record captions as a run does that made ``rows`` of them in ``seconds`` a stage, the engine's start included."""
    metadata = {"rows_new": rows, "engine_seconds": seconds, "engine_start_seconds": start}
    for stage in BOTH:
        harness.materialize(stage, shard, metadata=metadata, **other)


def run_caption(harness: AutomationHarness, shard: str, *, rows: int, seconds: float) -> None:
    """Caption a shard in a run of its own, without an engine's start."""
    project = harness.project

    for stage in BOTH:
        harness.publish(stage, shard, None)

        @dg.asset(key=project.key(stage), partitions_def=project.partitions, code_version=harness.code(stage))
        def captions() -> dg.MaterializeResult[None]:
            metadata = {"rows_new": rows, "engine_seconds": seconds, "engine_start_seconds": 0.0}
            return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion("1"))

        dg.materialize([captions], instance=harness.instance, partition_key=shard)


def test_windows_of_manifests_are_counted(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    found = estimated(harness)
    assert (found.shards, found.shards_without_manifest) == (5, 0)
    assert (found.windows.low, found.windows.value, found.windows.high) == (500, 500, 500)
    assert (found.visual_tokens, found.video_hours) == (100_000, 2.5)


def test_manifest_recorded_without_counts_is_read(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde")
    assert estimated(harness).windows.value == 5


def test_captioned_shards_are_not_left(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    for shard in "abcd":
        caption(harness, shard, rows=100, seconds=10, start=0)
    assert estimated(harness).shards == 1
    assert estimated(harness, "a", "e").shards == 1
    assert estimated(harness, again=True).shards == 5


def test_nothing_is_left_when_all_is_captioned(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    for shard in "abcde":
        caption(harness, shard, rows=100, seconds=10, start=0)
    found = estimated(harness)
    assert dict(table(found)) == {"left": "nothing: all 5 shards are up to date"}
    assert found.engine_hours is not None
    assert found.engine_hours.value == 0


def test_rate_is_that_of_earlier_runs_without_the_start(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    caption(harness, "a", rows=100, seconds=35, start=20)
    found = estimated(harness)
    assert found.rate == pytest.approx(100 / (2 * 35 - 20))
    assert found.engine_hours is not None
    assert found.engine_hours.value * 3600 == pytest.approx(400 / 2 + 20)
    assert found.rate_origin.startswith("measured in 1 run with this recipe and model; its spread is not known")


def test_range_is_that_of_the_runs(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    run_caption(harness, "a", rows=100, seconds=10)
    run_caption(harness, "b", rows=100, seconds=30)
    found = estimated(harness, "c")
    assert found.engine_hours is not None
    assert found.engine_hours.value * 3600 == pytest.approx(40)
    assert (found.engine_hours.low * 3600, found.engine_hours.high * 3600) == pytest.approx((20, 60))


def test_present_settings_count_before_others(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    caption(harness, "a", rows=100, seconds=500, start=0, code="other")
    assert "with another recipe or model" in estimated(harness).rate_origin
    caption(harness, "b", rows=100, seconds=10, start=0)
    found = estimated(harness, "c")
    assert found.rate == pytest.approx(5)
    assert "with this recipe and model" in found.rate_origin


def test_missing_stage_alone_takes_its_own_time(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    caption(harness, "a", rows=100, seconds=10, start=0)
    harness.materialize(STAGE1.name, "b", metadata={"rows_new": 100, "engine_seconds": 10, "engine_start_seconds": 0})
    found = estimated(harness, "b", "c", rate=None)
    assert found.engine_hours is not None
    # The missing second stage requests the first one too, whose failed rows are retried.
    assert found.engine_hours.value * 3600 == pytest.approx(40)


def test_given_rate_replaces_that_of_earlier_runs(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    caption(harness, "a", rows=100, seconds=35, start=20)
    found = estimated(harness, "b", rate=4)
    assert found.rate == pytest.approx(4)
    assert found.rate_origin.startswith("given by --rate")


def test_gpu_hours_and_cost_follow_from_the_engine_time(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata={**COUNTS, "rows_ok": 7200})
    given = {"model": "qwen2.5", "tensor_parallel_size": 2, "gpu_hour_price": 3.0, "recipe": "general"}
    harness.settings = harness.settings.model_copy(update=given)
    found = estimated(harness, rate=5)
    assert found.gpu_hours is not None
    assert found.cost is not None
    assert (found.gpu_hours.value, found.cost.value) == pytest.approx((4, 12))


def test_each_run_has_an_engine_start(harness: AutomationHarness) -> None:
    harness.settings = harness.settings.model_copy(update={"shards_per_run": 2})
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    caption(harness, "a", rows=100, seconds=35, start=20)
    assert estimated(harness).engine_starts == 2


def test_unknown_rate_is_named_with_the_remedy(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    lines = dict(table(estimated(harness)))
    assert lines["rate"].startswith("not known")
    assert "caption-assets bench" in lines["engine time"]


def test_output_is_measured_on_captioned_shards(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata={**COUNTS, "rows_ok": 1})
    assert estimated(harness).output_bytes is None
    caption(harness, "a", rows=1, seconds=1, start=0)
    size = sum(sum(harness.root.sizes(f"{name}/shard=a").values()) for name in (CLIP_MANIFEST, *BOTH))
    assert estimated(harness).output_bytes == 4 * size


def test_unknown_shard_is_refused(harness: AutomationHarness) -> None:
    with pytest.raises(UnknownName, match="unknown shard 'z'"):
        estimated(harness, "z")


def test_shard_without_manifest_is_sampled(harness: AutomationHarness) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    for number in range(3):
        harness.write_file(f"new/{number}.mp4", moving_video(300))
    found = estimated(harness)
    assert (found.shards, found.shards_without_manifest, found.clips_sampled) == (6, 1, 3)
    assert found.windows.value == 503


def test_changed_shard_is_sampled_before_its_change_is_reported(harness: AutomationHarness) -> None:
    harness.write_file("new/0.mp4", moving_video(24))
    harness.run_sensor()
    harness.materialize(CLIP_MANIFEST, *"abcde", "new", metadata=COUNTS)
    harness.write_file("new/1.mp4", moving_video(24))
    found = estimated(harness, "new")
    assert (found.shards_without_manifest, found.windows.value) == (1, 2)


def test_command_prints_json(
    harness: AutomationHarness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.materialize(CLIP_MANIFEST, *"abcde", metadata=COUNTS)
    monkeypatch.setenv("CAPTION_ROOT", str(harness.settings.root))
    monkeypatch.setenv("CAPTION_RECIPE", "general")
    assert run_cli("estimate", "--rate", "2", "--json") is None
    found = json.loads(capsys.readouterr().out)
    assert (found["windows"]["value"], found["engine_hours"]["value"]) == (500, pytest.approx(500 / 2 / 3600))


def write_shard(folder: Path, name: str, clips: int) -> None:
    """Write a shard of clips of one window each."""
    (folder / name).mkdir(parents=True)
    data = moving_video(24)
    for number in range(clips):
        (folder / name / f"{number:03}.mp4").write_bytes(data)


def test_sample_is_extrapolated_to_all_clips_and_shards(tmp_path: Path) -> None:
    for number in range(10):
        write_shard(tmp_path, f"s{number}", clips=20)
    source = Root.open(str(tmp_path))
    shards = [find_shard(source, f"s{number}") for number in range(10)]
    found = sample_workload(SANDBOX, source, shards, Windowing(), Recipe())
    assert (found.shards, found.clips) == (8, 128)
    assert (found.workload.windows, found.error) == pytest.approx((200, 0))


def test_different_shards_have_an_error(tmp_path: Path) -> None:
    for number in range(9):
        write_shard(tmp_path, f"s{number}", clips=1 + number % 2)
    source = Root.open(str(tmp_path))
    shards = [find_shard(source, f"s{number}") for number in range(9)]
    found = sample_workload(SANDBOX, source, shards, Windowing(), Recipe())
    assert abs(found.workload.windows - 13) <= 2 * found.error < 4


def test_unreadable_shard_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    source = Root.open(str(tmp_path))
    found = sample_workload(SANDBOX, source, [find_shard(source, "empty")], Windowing(), Recipe())
    assert found.workload == Workload()


def test_spread_items_are_at_equal_distances() -> None:
    assert spread(range(10), 3) == [1, 4, 8]
    assert spread(range(3), 3) == [0, 1, 2]


def test_stage_without_a_measurement_counts_as_the_mean() -> None:
    rate = given_rate(5, ["a", "b"])
    assert rate.window_seconds(["a", "b", "c"]) == pytest.approx(0.3)
