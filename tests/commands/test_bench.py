from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.commands.bench import BenchResult, NoWindows, measure, readable_windows, table
from caption_assets.sample.shards import FOLDER_SHARD
from caption_assets.sources.files import find_clips
from caption_assets.store.tables import ManifestRow
from caption_assets.video.window import Windowing
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.conftest import SANDBOX, RunAsync
from tests.stages import two_stages
from tests.videos import moving_video

RESULT = BenchResult(
    model="org/model",
    recipe="general",
    stages=2,
    windows=64,
    clips=8,
    failed=0,
    error=None,
    engine_start_seconds=40.0,
    seconds=16.0,
    windows_per_second=4.0,
    video_seconds_per_second=34.0,
    prompt_tokens_per_second=50_000.0,
    output_tokens_per_second=1000.0,
    cached_share=0.48,
    decode_windows_per_second=40.0,
    decode_workers=8,
    uses_gpu=True,
)


def windows_of(*files: Path, report: Callable[[str], None] = lambda _: None) -> list[ManifestRow]:
    return readable_windows(SANDBOX, find_clips(files), Windowing(24, 12), report)


def clip(folder: Path) -> Path:
    """A clip of two windows, in a folder whose name would be escaped in a URL."""
    path = folder / "my clips 100%" / "clip #1.mp4"
    path.parent.mkdir()
    path.write_bytes(moving_video(48))
    return path


@pytest.mark.fast
def test_bench_repeats_windows_until_there_are_enough(tmp_path: Path) -> None:
    rows = windows_of(clip(tmp_path))
    assert len(rows) == 2
    keys: list[str] = []
    engine = FakeEngine(lambda request: keys.append(request.video_id) if request.stage == 1 else None)

    async def run() -> BenchResult:
        async with EngineSupervisor(lambda: start_fake_engine(engine)) as supervisor:
            return await measure(supervisor, two_stages(), SANDBOX, rows, 7, lambda _: None)

    result = asyncio.run(run())
    assert (result.windows, result.clips, result.failed) == (7, 1, 0)
    assert len(set(keys)) == len(keys) >= 7  # the engine's caches know no window
    assert result.windows_per_second == pytest.approx(7 / result.seconds)


@pytest.mark.fast
def test_unreadable_files_are_reported_and_skipped(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no video")
    reports: list[str] = []
    rows = windows_of(text, tmp_path / "missing.mp4", clip(tmp_path), report=reports.append)
    assert len({row.clip_key for row in rows}) == 1
    assert [report.startswith("skipped ") for report in reports] == [True, True]
    assert reports[1].endswith("missing.mp4: the file does not exist, or cannot be reached")


@pytest.mark.fast
def test_files_without_any_window_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        NoWindows,
        match=r"no file can be captioned; the first: .*missing.mp4: the file does not exist",
    ):
        windows_of(tmp_path / "missing.mp4")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("decoding", "uses_gpu", "limit"),
    [(40.0, True, "engine"), (4.4, True, "decoding"), (6.0, True, "engine"), (6.0, False, "decoding")],
)
def test_limit_follows_from_the_rate_of_decoding_alone(decoding: float, uses_gpu: bool, limit: str) -> None:
    result = replace(RESULT, decode_windows_per_second=decoding, uses_gpu=uses_gpu)
    assert result.limit == json.loads(result.to_json())["limit"] == limit


@pytest.mark.fast
def test_limit_by_decoding_names_the_setting() -> None:
    result = replace(RESULT, decode_windows_per_second=4.0, decode_workers=1)
    assert "raise CAPTION_DECODE_WORKERS" in dict(table(result))["limit"]


@pytest.mark.engine
def test_bench_measures_the_engine(
    run_async: RunAsync[BenchResult], supervisor: EngineSupervisor, sample_data: Path
) -> None:
    clips = find_clips([sample_data / "shards" / FOLDER_SHARD])
    rows = readable_windows(SANDBOX, clips, Windowing(), lambda _: None)
    result = run_async(measure(supervisor, Recipe(), SANDBOX, rows, 16, lambda _: None))
    assert (result.windows, result.failed) == (16, 0)
    assert result.output_tokens_per_second > 0
    assert 0 < result.cached_share < 1
