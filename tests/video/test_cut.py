"""Tests of cutting: the files' frames are those of the window, as FFmpeg's command line decodes them."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from numpy.typing import NDArray

from caption_assets.errors import UnreadableClip
from caption_assets.video.cut import CutMethod, CutMismatch, WindowCutter
from caption_assets.video.cut_in_worker import cut_shared
from caption_assets.video.cut_plan import CutPlan
from caption_assets.workers.sandbox import Sandbox, SandboxLimits
from caption_assets.workers.shared_memory import ClipFile
from tests.video.ffmpeg import audio_samples, frame_hashes, frame_times, rgb_frames, video_stream
from tests.video.full_decode import full_decode, to_gray
from tests.video.numbered import SIZE, Recording, numbers, recordings_by_name, x264
from tests.videos import (
    SHORT_GROUPS,
    VIDEO_KINDS,
    decode,
    hdr_video,
    moving_video,
    noise_video,
    video_of_kind,
    video_with_changing_parameter_sets,
    with_display_matrix,
)

FAST = {"h264 gop 10 b 2, avi", "hevc open gop, mpegts", "h264 gop 10 b 4, matroska, variable rate"}


def plan(start: int, end: int, size: tuple[int, int] = (96, 64), **changes: object) -> CutPlan:
    """A plan that allows a copy."""
    values = {"frames": end - start, "fps": Fraction(25), "can_copy": True, **changes}
    return CutPlan(start, end, width=size[0], height=size[1], **values)  # type: ignore[arg-type]


def cut(data: bytes, wanted: CutPlan, folder: Path) -> tuple[CutMethod, Path]:
    """Cut one window, and return how, and the file."""
    path = folder / "window.mp4"
    cutter = WindowCutter(partial(BytesIO, data))
    [method] = [step for step in cutter.cut(wanted, path) if step]
    cutter.close()
    if method is CutMethod.AS_IS:
        path.write_bytes(data)
    return method, path


def raise_mismatch() -> None:
    raise CutMismatch("cut_mismatch", "it is short")


def cases() -> list[object]:
    """All recordings, a few of them in the fast lane."""
    return [
        pytest.param(recording, id=name, marks=pytest.mark.fast if name in FAST else pytest.mark.nightly)
        for name, recording in recordings_by_name()
    ]


@pytest.mark.parametrize("recording", cases())
def test_window_of_every_recording_has_exactly_its_frames(recording: Recording, tmp_path: Path) -> None:
    data = recording.write()
    for start, end in ((0, 20), (20, 40), (13, 33)):
        _, path = cut(data, plan(start, end, SIZE[::-1]), tmp_path)
        assert numbers(full_decode(path, SIZE).pictures) == list(range(start, end))


COPIED = [
    ("h264", 12, 36),
    ("h264", 24, 48),
    ("h264 fragmented", 0, 48),
    ("h264 variable rate", 12, 48),
    ("h264 10 bits", 12, 24),
    ("h264 transport stream", 0, 24),
    ("hevc", 12, 36),
    ("vp9", 12, 36),
    ("av1", 12, 36),
    ("mpeg4", 0, 1),
]


@pytest.mark.fast
@pytest.mark.parametrize(("kind", "start", "end"), COPIED)
def test_window_between_keyframes_is_copied_bit_by_bit(kind: str, start: int, end: int, tmp_path: Path) -> None:
    data = video_of_kind(kind)
    (tmp_path / "clip").write_bytes(data)
    method, path = cut(data, plan(start, end), tmp_path)
    assert method is CutMethod.COPIED
    assert frame_hashes(path) == frame_hashes(tmp_path / "clip")[start:end]
    assert frame_times(path)[0] == 0


ENCODED = [
    ("h264", 13, 37),  # begins between keyframes
    ("h264", 12, 35),  # ends before a picture that precedes it in the stream
    ("h264 open groups", 12, 36),
    ("h264 gradual refresh", 12, 36),
    ("h264 edit list", 0, 24),
    ("h264 4:4:4", 0, 24),
    ("hevc open groups", 12, 36),
    ("mpeg2", 0, 48),
    ("vp8", 12, 36),
    ("vp9 hidden frames", 5, 20),
    ("prores", 0, 12),
    ("gif", 10, 40),
]


@pytest.mark.fast
@pytest.mark.parametrize(("kind", "start", "end"), ENCODED)
def test_other_window_is_encoded_with_its_pictures(kind: str, start: int, end: int, tmp_path: Path) -> None:
    data = video_of_kind(kind)
    method, path = cut(data, plan(start, end), tmp_path)
    assert method is CutMethod.ENCODED
    shown = rgb_frames(path, (96, 64))
    wanted = decode(data, start, end, end - start, None).pixels
    assert psnr(shown, wanted) > 26
    assert frame_times(path) == pytest.approx([index / 25 for index in range(end - start)], abs=1e-4)
    stream = video_stream(path)
    assert (stream["codec_name"], stream["pix_fmt"]) == ("h264", "yuv420p")
    assert (stream["color_space"], stream["color_range"]) == ("bt709", "tv")


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of the gray levels of RGB pictures, in dB: 15 for neighbors, as they move."""
    return float(10 * np.log10(255**2 / np.mean((to_gray(one).astype(float) - to_gray(other)) ** 2)))


@pytest.mark.fast
def test_whole_clip_in_mp4_is_the_file_itself(tmp_path: Path) -> None:
    wanted = plan(0, 48, is_whole_clip=True)
    assert cut(video_of_kind("h264"), wanted, tmp_path)[0] is CutMethod.AS_IS
    assert cut(video_of_kind("vp9"), wanted, tmp_path)[0] is CutMethod.COPIED  # in another container
    assert cut(video_of_kind("h264 edit list"), plan(0, 41, is_whole_clip=True), tmp_path)[0] is CutMethod.ENCODED


@pytest.mark.fast
def test_parameter_sets_that_change_prevent_a_copy(tmp_path: Path) -> None:
    method, path = cut(video_with_changing_parameter_sets("mpegts"), plan(48, 96), tmp_path)
    assert (method, len(frame_hashes(path))) == (CutMethod.ENCODED, 48)


@pytest.mark.fast
def test_copy_with_another_number_of_frames_is_detected_and_the_window_encoded(tmp_path: Path) -> None:
    method, path = cut(video_of_kind("h264"), plan(12, 36, frames=23), tmp_path)
    assert (method, len(frame_hashes(path))) == (CutMethod.ENCODED, 23)


@pytest.mark.fast
def test_mismatch_in_a_worker_keeps_its_kind() -> None:
    with Sandbox(SandboxLimits(), workers=1) as sandbox:
        job = sandbox.submit(raise_mismatch)
        with pytest.raises(CutMismatch, match="it is short") as error:
            sandbox.result(job)
    assert error.value.kind == "cut_mismatch"


@pytest.mark.fast
def test_rotated_clip_is_upright(tmp_path: Path) -> None:
    data = with_display_matrix(video_of_kind("h264"), 0, 1, -1, 0)
    _, path = cut(data, plan(12, 24, (64, 96), can_copy=False), tmp_path)
    stream = video_stream(path)
    assert (stream["width"], stream["height"], stream.get("side_data_list")) == (64, 96, None)
    assert psnr(rgb_frames(path, (64, 96)), decode(data, 12, 24, 12, None).pixels) > 26


@pytest.mark.fast
def test_anamorphic_clip_gets_square_pixels(tmp_path: Path) -> None:
    data = noise_video(size=(72, 64), frames=12, pixel_aspect=Fraction(4, 3), sound=False)
    method, path = cut(data, plan(0, 12, (96, 64)), tmp_path)
    stream = video_stream(path)
    assert (method, stream["width"], stream["height"]) == (CutMethod.ENCODED, 96, 64)
    assert stream.get("sample_aspect_ratio", "1:1") == "1:1"


@pytest.mark.fast
def test_hdr_is_tone_mapped_to_bt709(tmp_path: Path) -> None:
    signal = np.full((64, 96, 3), 38000, np.uint16)
    data = hdr_video(signal, ColorTrc.SMPTE2084)
    method, path = cut(data, plan(0, 4), tmp_path)
    stream = video_stream(path)
    assert (method, stream["color_transfer"], stream["pix_fmt"]) == (CutMethod.ENCODED, "bt709", "yuv420p")
    wanted = decode(data, 0, 4, 4, None).pixels
    assert np.abs(rgb_frames(path, (96, 64)).mean() - wanted.mean()) < 2


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["h264 interlaced", "mpeg4 avi, odd", "vp9 odd"])
def test_interlaced_and_odd_clips_get_a_plain_file_of_even_size(kind: str, tmp_path: Path) -> None:
    method, path = cut(video_of_kind(kind), plan(0, 24), tmp_path)
    stream = video_stream(path)
    assert (method, stream["width"], stream["height"]) == (CutMethod.ENCODED, 96, 64)
    assert stream.get("field_order", "progressive") == "progressive"
    assert len(frame_hashes(path)) == 24


@pytest.mark.fast
def test_resampled_file_shows_the_picture_of_each_time(tmp_path: Path) -> None:
    recording = Recording(x264(gop=10, bframes=2), "mp4", (*range(20), *range(40, 60)))
    wanted = plan(10, 40, SIZE[::-1], frames=20, fps=Fraction(10), resampled=True, can_copy=False)
    _, path = cut(recording.write(), wanted, tmp_path)
    shown = numbers(full_decode(path, SIZE).pictures)
    # 10 fps from 0.4 s on; picture 19 is shown from 0.76 s to 1.6 s
    assert shown == [10, 12, 15, 17, *[19] * 8, 20, 22, 25, 27, 30, 32, 35, 37]


@pytest.mark.fast
@pytest.mark.parametrize(("start", "end"), [(0, 25), (25, 50), (30, 41)])
def test_audio_is_cut_at_the_sample(start: int, end: int, tmp_path: Path) -> None:
    data = noise_video(g="25", bf="0", preset="ultrafast")
    (tmp_path / "clip").write_bytes(data)
    _, path = cut(data, plan(start, end, (160, 120), audio=True), tmp_path)
    whole, part = audio_samples(tmp_path / "clip"), audio_samples(path)
    wanted = whole[640 * start : 640 * end]
    assert abs(len(part) - len(wanted)) <= 1024
    shared = min(len(part), len(wanted))
    assert np.corrcoef(part[512 : shared - 512], wanted[512 : shared - 512])[0, 1] > 0.95


@pytest.mark.fast
def test_file_without_audio_has_none(tmp_path: Path) -> None:
    data = noise_video(frames=12, preset="ultrafast")
    method, path = cut(data, plan(0, 12, (160, 120), is_whole_clip=True), tmp_path)
    assert method is CutMethod.COPIED
    with pytest.raises(Exception, match="non-zero exit status"):
        audio_samples(path)


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["h264", "h264 open groups", "h264 transport stream", "hevc open groups", "mpeg4"])
def test_remuxed_window_begins_with_its_frames_as_they_are(kind: str, tmp_path: Path) -> None:
    data = video_of_kind(kind)
    (tmp_path / "clip").write_bytes(data)
    method, path = cut(data, plan(13, 37, as_stored=True), tmp_path)
    assert method is CutMethod.COPIED
    assert frame_hashes(path)[:24] == frame_hashes(tmp_path / "clip")[13:37]


@pytest.mark.fast
def test_remuxing_a_codec_that_mp4_lacks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableClip, match="MP4 files do not have streams of vp8") as error:
        cut(video_of_kind("vp8"), plan(0, 24, as_stored=True), tmp_path)
    assert error.value.kind == "codec"


@pytest.mark.fast
@pytest.mark.parametrize("length", [0.5, 0.9])
def test_damaged_window_is_an_error(length: float, tmp_path: Path) -> None:
    data = moving_video(48, container="mpegts", options={"x264-params": SHORT_GROUPS})
    with pytest.raises(UnreadableClip, match=r"frames, but its window ends at 48|cannot be decoded") as error:
        cut(data[: int(length * len(data))], plan(5, 48, can_copy=False), tmp_path)
    assert error.value.kind == "damaged"


@pytest.mark.fast
def test_windows_in_order_take_one_pass_over_a_clip_with_one_group(tmp_path: Path) -> None:
    data = video_of_kind("h264 one group")
    opened = []

    def open_file() -> BytesIO:
        opened.append(1)
        return BytesIO(data)

    cutter = WindowCutter(open_file)
    list(cutter.cut(plan(1, 13), tmp_path / "1.mp4"))
    first = len(opened)
    for start in (13, 25):
        list(cutter.cut(plan(start, start + 12), tmp_path / f"{start}.mp4"))
    assert len(opened) == first
    assert psnr(rgb_frames(tmp_path / "25.mp4", (96, 64)), decode(data, 25, 37, 12, None).pixels) > 26


@pytest.mark.fast
def test_cut_that_is_paused_continues_in_its_worker(tmp_path: Path) -> None:
    data = video_of_kind("h264")
    clip = ClipFile(len(data))
    clip.append(data)
    part, path = (clip.handle, "part"), tmp_path / "window.mp4"
    steps: list[CutMethod | None] = []
    with Sandbox(SandboxLimits(), workers=1) as sandbox:
        while not steps or steps[-1] is None:
            job = sandbox.submit_with_affinity("part", cut_shared, part, plan(13, 25), path, pause_after=0.0)
            steps.append(sandbox.result(job))
    assert steps[-1] is CutMethod.ENCODED
    assert len(steps) > 12
    assert len(frame_hashes(path)) == 12


@pytest.mark.fast
def test_every_kind_of_video_can_be_cut(tmp_path: Path) -> None:
    for kind in VIDEO_KINDS:
        if kind != "h264 one frame":
            size = (96, 64)
            cutter = WindowCutter(partial(BytesIO, video_of_kind(kind)))
            assert [step for step in cutter.cut(plan(2, 8, size), tmp_path / "window.mp4") if step]
            cutter.close()
