"""Tests of window files in the dataset: their plan, publication, resumption and failures."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.export.config import Cut, CutConfig, ExportConfig
from caption_assets.export.dataset_shard import ExportError, ExportResult, export_shard
from caption_assets.export.index import find_index, shard_folder
from caption_assets.export.video_files import plan_cut, window_file
from caption_assets.store.failure_limits import FailureLimit, FailureLimits, TooManyFailures
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow
from caption_assets.video.probe import probe
from caption_assets.video.window import Windowing, split_into_windows
from caption_assets.workers.sandbox import Sandbox
from tests.export.shards import LINES, clip, names, publish_captioned
from tests.report.windows import SHARD, window
from tests.video.ffmpeg import frame_hashes
from tests.videos import moving_video, video_of_kind

pytestmark = pytest.mark.fast

EXACT = replace(LINES, cut=CutConfig(Cut.EXACT))
ANYTHING = FailureLimit(1.0, 0, ("", ""))
NO_LIMITS = FailureLimits(ANYTHING, ANYTHING)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root that is also the source."""
    return Root.open(str(tmp_path / "root"))


def real_clip(root: Root, key: str, data: bytes, size: int = 24, *, probed: bytes | None = None) -> list[ManifestRow]:
    """Write a video into a root, and return the rows of its windows of ``size`` frames."""
    found = probe(probed or data)
    [base] = clip(root, key, data)
    properties: dict[str, Any] = {
        name: getattr(found, name)
        for name in ("codec", "width", "height", "rotation", "mirrored", "interlaced", "has_audio", "variable_fps")
    }
    return [
        replace(
            base,
            **properties,
            window_index=one.index,
            window_id=f"{key}-{one.index}",
            start_frame=one.start_frame,
            end_frame=one.end_frame,
            start_seconds=one.start_seconds,
            end_seconds=one.end_seconds,
            clip_frames=found.frames,
            clip_fps=found.fps,
            clip_seconds=found.seconds,
        )
        for one in split_into_windows(found.times, found.seconds, Windowing(size, min(size, 12)))
    ]


def export(root: Root, how: ExportConfig) -> ExportResult:
    """Export a shard with one worker."""
    return export_shard(root, root, SHARD, how, lambda: Sandbox(workers=1))


def videos(root: Root) -> list[str]:
    """The names of the shard's video files."""
    return [name for name in names(root) if name.endswith(".mp4")]


def path_of(root: Root, name: str) -> Path:
    """The local path of a file of the shard."""
    return Path(root.full(f"{shard_folder(SHARD)}/{name}"))


def constant(frames: int = 100, fps: float = 25.0, **changes: Any) -> ManifestRow:
    """The row of a whole clip of constant rate."""
    values = {"end_frame": frames, "clip_frames": frames, "clip_fps": fps, "end_seconds": frames / fps, **changes}
    return window("a.mp4", width=640, height=360, variable_fps=False, rotation=0, mirrored=False, **values)


def test_plan_without_options_is_the_window() -> None:
    plan = plan_cut(constant(), CutConfig(Cut.EXACT))
    assert (plan.frames, float(plan.fps), plan.width, plan.height) == (100, 25.0, 640, 360)
    assert plan.can_copy
    assert plan.is_whole_clip
    assert not plan.resampled


@pytest.mark.parametrize("fps", [24000 / 1001, 30000 / 1001, 60000 / 1001])
def test_plan_has_the_exact_rate_of_broadcasts(fps: float) -> None:
    assert plan_cut(constant(fps=fps), CutConfig(Cut.EXACT)).fps == Fraction(round(fps) * 1000, 1001)


def test_plan_of_variable_rate_has_the_average_rate() -> None:
    plan = plan_cut(replace(constant(), variable_fps=True, end_seconds=8.0), CutConfig(Cut.EXACT))
    assert (plan.frames, plan.fps, plan.seconds) == (100, Fraction(25, 2), 8.0)


def test_clip_that_holds_its_last_frame_is_not_taken_as_it_is() -> None:
    plan = plan_cut(replace(constant(), end_seconds=60.0), CutConfig(Cut.EXACT))
    assert (plan.is_whole_clip, plan.seconds) == (False, 4.0)


def test_rate_of_the_clip_needs_no_resampling() -> None:
    plan = plan_cut(constant(fps=24.0002), CutConfig(Cut.EXACT, fps=24))
    assert (plan.resampled, plan.can_copy, float(plan.fps)) == (False, True, 24.0)
    assert plan_cut(constant(fps=24000 / 1001), CutConfig(Cut.EXACT, fps=24)).resampled


@pytest.mark.parametrize(
    "changes", [{"rotation": 90}, {"mirrored": True}, {"interlaced": True}, {"codec": "vp8"}, {"width": 641}]
)
def test_stream_that_decoders_show_otherwise_than_players_is_not_copied(changes: dict[str, Any]) -> None:
    assert not plan_cut(replace(constant(), **changes), CutConfig(Cut.EXACT)).can_copy


@given(
    frames=st.integers(1, 5000),
    clip_fps=st.floats(1, 240),
    fps=st.none() | st.floats(1, 120),
    seconds=st.none() | st.floats(0.01, 300),
)
def test_file_is_as_long_as_the_window_or_the_limit(
    frames: int, clip_fps: float, fps: float | None, seconds: float | None
) -> None:
    plan = plan_cut(constant(frames, clip_fps), CutConfig(Cut.EXACT, fps=fps, seconds=seconds))
    wanted = min(frames / clip_fps, seconds or math.inf)
    assert plan.frames >= 1
    assert abs(plan.seconds - wanted) <= 1.01 / plan.fps + 1e-3 * wanted
    assert plan.resampled or plan.frames <= frames


@given(width=st.integers(1, 8192), height=st.integers(1, 8192), longest=st.none() | st.integers(16, 8192))
def test_size_is_even_and_never_enlarged(width: int, height: int, longest: int | None) -> None:
    row = replace(constant(), width=width, height=height)
    plan = plan_cut(row, CutConfig(Cut.EXACT, longest_side=longest))
    assert plan.width % 2 == plan.height % 2 == 0
    assert plan.width <= max(width, 2)
    assert plan.height <= max(height, 2)
    assert max(plan.width, plan.height) <= (longest or 8192)
    scale = min(1, (longest or math.inf) / max(width, height))
    assert abs(plan.width - width * scale) <= 2
    assert abs(plan.height - height * scale) <= 2


def test_name_changes_with_what_decides_the_content() -> None:
    row, config = constant(), CutConfig(Cut.EXACT)
    found = {
        window_file(SHARD, row, config).name,
        window_file("other", row, config).name,
        window_file(SHARD, replace(row, content_tag="other"), config).name,
        window_file(SHARD, replace(row, window_id="other"), config).name,
        window_file(SHARD, row, replace(config, longest_side=320)).name,
        window_file(SHARD, row, replace(config, cut=Cut.REMUX)).name,
    }
    assert len(found) == 6
    assert window_file(SHARD, row, CutConfig(Cut.EXACT)).name in found


def test_each_window_becomes_a_file_of_its_frames(root: Root, tmp_path: Path) -> None:
    publish_captioned(
        root, real_clip(root, "a.mp4", video_of_kind("h264")), real_clip(root, "b.webm", video_of_kind("vp9"))
    )
    (tmp_path / "a").write_bytes(video_of_kind("h264"))
    index = export(root, EXACT).index
    assert sorted(file.name for file in index.files if file.name.endswith(".mp4")) == videos(root)
    assert len(videos(root)) == 4
    hashes = [frame_hashes(path_of(root, name)) for name in videos(root)]
    whole = frame_hashes(tmp_path / "a")
    assert whole[:24] in hashes
    assert whole[24:] in hashes


def test_repeated_export_cuts_nothing(root: Root) -> None:
    rows = real_clip(root, "a.mp4", video_of_kind("h264"))
    publish_captioned(root, rows)
    first = export(root, EXACT)
    root.remove(rows[0].uri)  # the clips are not read
    assert export(root, EXACT) == replace(first, written=False)


def test_changed_caption_cuts_nothing(root: Root) -> None:
    rows = real_clip(root, "a.mp4", video_of_kind("h264"))
    publish_captioned(root, rows)
    before = export(root, EXACT)
    root.remove(rows[0].uri)
    publish_captioned(root, rows, model="other")
    after = export(root, EXACT)
    assert after.written
    assert after.index.version != before.index.version


def test_files_of_a_killed_export_are_not_cut_again(root: Root) -> None:
    publish_captioned(root, real_clip(root, "a.mp4", video_of_kind("h264")))
    export(root, EXACT)
    kept, missing = videos(root)
    inode = os.stat(path_of(root, kept)).st_ino
    for name in ("index.json", missing):
        path_of(root, name).unlink()
    export(root, EXACT)
    assert videos(root) == [kept, missing]
    assert os.stat(path_of(root, kept)).st_ino == inode


def test_failed_export_keeps_its_window_files_and_the_earlier_export(root: Root) -> None:
    good, bad = real_clip(root, "a.mp4", video_of_kind("h264")), real_clip(root, "b.mp4", video_of_kind("hevc"))
    publish_captioned(root, good, bad)
    before = export(root, LINES).index
    root.write(bad[0].uri, b"changed")
    with pytest.raises(ExportError, match=r"clip 'b\.mp4' has changed"):
        export(root, EXACT)
    assert find_index(root, SHARD) == before
    assert [name for name in names(root) if not name.endswith(".mp4")] == [before.files[0].name, "index.json"]


def test_other_settings_replace_the_files(root: Root) -> None:
    publish_captioned(root, real_clip(root, "a.mp4", video_of_kind("h264")))
    export(root, EXACT)
    before = set(videos(root))
    export(root, replace(EXACT, cut=CutConfig(Cut.EXACT, longest_side=48)))
    assert len(videos(root)) == 2
    assert before.isdisjoint(videos(root))
    export(root, LINES)
    assert videos(root) == []


def damaged_clip(root: Root) -> list[ManifestRow]:
    """A clip of one group whose second half cannot be decoded, with the rows of its undamaged file."""
    data = moving_video(48, options={"x264-params": "keyint=250:threads=1"})
    start, end = data.index(b"mdat"), data.index(b"moov")
    middle = (start + end) // 2
    damaged = data[:middle] + b"\xff" * (end - 8 - middle) + data[end - 8 :]
    return real_clip(root, "damaged.mp4", damaged, probed=data)


def test_window_that_cannot_be_cut_is_left_out_and_counted(root: Root) -> None:
    publish_captioned(root, real_clip(root, "a.mp4", video_of_kind("h264")), damaged_clip(root))
    first = export(root, replace(EXACT, limits=NO_LIMITS))
    assert (first.index.windows, first.index.left_out) == (2, {"window_files: damaged": 2})
    assert list(first.index.not_cut.values()) == ["damaged", "damaged"]
    assert export(root, replace(EXACT, limits=NO_LIMITS)) == replace(first, written=False)


def test_too_many_windows_that_cannot_be_cut_fail_the_export(root: Root) -> None:
    publish_captioned(root, real_clip(root, "a.mp4", video_of_kind("h264")), damaged_clip(root))
    none = FailureLimits(ANYTHING, FailureLimit(0.0, 0, ("CAPTION_MAX_FAILED_FRACTION", "CAPTION_MAX_FAILED_WINDOWS")))
    with pytest.raises(
        TooManyFailures, match=r"2 of 4 windows cannot be cut.* = 0; the first: 'damaged\.mp4', window 0: the clip has"
    ):
        export(root, replace(EXACT, limits=none))
    assert find_index(root, SHARD) is None
