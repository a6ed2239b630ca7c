import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from caption_assets.errors import UnreadableClip
from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.video.probe import JITTER_SECONDS, Limits, Probe, probe, probe_by_ranges
from tests.videos import audio_only, counting_video, noise_video

pytestmark = pytest.mark.fast

Opened = Callable[[bytes], SpanFile]

HEVC = {"codec": "libx265", "preset": "ultrafast", "x265-params": "bframes=3:log-level=none"}
VP9 = {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"}
FRAMES = 30
KINDS: dict[str, dict[str, Any]] = {
    "h264 with b frames": {"bf": "3"},
    "h264 with several slices": {"slices": "4"},
    "h264 with open gops": {"x264-params": "open-gop=1:keyint=20"},
    "h264 with 10 bits": {"pixel_format": "yuv420p10le"},
    "hevc": HEVC,
    "mpeg-4": {"codec": "mpeg4", "bf": "2"},
    "mpeg-2": {"codec": "mpeg2video", "bf": "2"},
    "motion jpeg": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "vp9": VP9,
    "vp9 with hidden frames": {"codec": "libvpx-vp9", "cpu-used": "8", "lag-in-frames": "16", "auto-alt-ref": "1"},
    "av1": {"codec": "libsvtav1", "preset": "12", "svtav1-params": "lp=1"},
    "prores in mov": {"codec": "prores_ks", "container": "mov", "pixel_format": "yuv422p10le", "frames": 10},
    "without audio": {"sound": False},
    "rotated": {"rotation": -90},
    "anamorphic": {"pixel_aspect": Fraction(4, 3), "rotation": 90},
    "interlaced": {"x264-params": "tff=1", "flags": "+ildct"},
    "variable frame rate": {"timestamps": [index + index // 10 * 3 for index in range(FRAMES)]},
    "with an edit list that drops frames": {"timestamps": [index - 10 for index in range(FRAMES)]},
    "with an edit list that begins late": {"timestamps": [index + 10 for index in range(FRAMES)]},
}


DAMAGEABLE = noise_video(movflags="faststart"), noise_video()


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """A function that writes a clip and opens it for reading by ranges, as for a manifest."""

    def make(data: bytes) -> SpanFile:
        (tmp_path / "clip").write_bytes(data)
        return SpanFile(Span(f"file://{tmp_path}/clip", 0, len(data)))

    return make


def outcome(read: Callable[[], Probe]) -> Probe | tuple[str, str]:
    """The probe, or the kind and message of the refusal."""
    try:
        return read()
    except UnreadableClip as refused:
        return refused.kind, str(refused)


def refusal(read: Callable[[], Probe]) -> UnreadableClip:
    with pytest.raises(UnreadableClip) as refused:
        read()
    return refused.value


def test_probe_describes_a_clip() -> None:
    found = probe(counting_video(50, fps=25, size=(64, 48)))
    assert (found.codec, found.width, found.height, found.frames) == ("h264", 64, 48, 50)
    assert (found.pixel_format, found.bit_depth, found.rotation, found.has_audio) == ("yuv420p", 8, 0, False)
    assert found.fps == pytest.approx(25)
    assert found.seconds == pytest.approx(2.0)


@pytest.mark.parametrize("movflags", ["", "faststart"], ids=["index last", "index first"])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_probe_by_ranges_equals_the_probe_of_the_whole_file(
    opened: Opened, options: dict[str, Any], movflags: str
) -> None:
    data = noise_video(**{"frames": FRAMES, **options}, movflags=movflags)
    file = opened(data)
    assert probe_by_ranges(file) == probe(data)
    assert file.zero_fill is False


@pytest.mark.parametrize("movflags", ["", "faststart"], ids=["index last", "index first"])
@pytest.mark.parametrize("options", [{"preset": "ultrafast"}, {"codec": "mpeg4"}], ids=["h264", "mpeg-4"])
def test_probe_of_an_mp4_reads_a_few_small_ranges(opened: Opened, options: dict[str, str], movflags: str) -> None:
    data = noise_video(**options, size=(320, 240), frames=150, b="3M", movflags=movflags)  # type: ignore[arg-type]
    assert len(data) > 2 << 20
    file = opened(data)
    probe_by_ranges(file)
    assert file.bytes_read < 0.06 * len(data)
    assert file.requests <= 3


def test_index_longer_than_the_prefetched_ends_is_fetched_once(opened: Opened) -> None:
    data = noise_video("mpeg4", size=(16, 16), frames=6000, bf="2", sound=False)
    assert len(data) - data.rindex(b"moov") > 1 << 15
    file = opened(data)
    assert probe_by_ranges(file).frames == 6000
    assert file.requests <= 4


@pytest.mark.parametrize(
    "options",
    [
        {"movflags": "frag_keyframe+empty_moov"},
        {"container": "matroska", "rotation": 90},
        {**VP9, "container": "webm", "sound": False},
        {"container": "mpegts"},
        {"container": "avi", "codec": "mpeg4"},
    ],
    ids=["fragmented", "matroska", "webm", "transport stream", "avi"],
)
def test_other_containers_are_read_completely(opened: Opened, options: dict[str, Any]) -> None:
    data = noise_video(**options)
    file = opened(data)
    assert probe_by_ranges(file) == probe(data)
    assert file.bytes_read >= len(data)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_size_and_rotation_are_those_displayed(opened: Opened, container: str, rotation: int) -> None:
    data = noise_video(container=container, frames=5, size=(160, 120), rotation=rotation, pixel_aspect=Fraction(4, 3))
    found = probe_by_ranges(opened(data))
    assert (found.width, found.height) == ((213, 120) if rotation in (0, 180) else (120, 213))
    with av.open(BytesIO(data), "r") as plain:
        [frame, *_] = plain.decode(video=0)
        assert found.rotation == frame.rotation % 360


def test_probe_detects_fields_and_bit_depth() -> None:
    found = probe(noise_video(frames=5, pixel_format="yuv420p10le", flags="+ildct"))
    assert (found.interlaced, found.bit_depth) == (True, 10)


def test_times_of_a_variable_frame_rate_are_those_of_the_file() -> None:
    timestamps = [0, 1, 2, 10, 20, 21]
    found = probe(counting_video(6, fps=10, timestamps=timestamps))
    assert found.times == pytest.approx([timestamp / 10 for timestamp in timestamps])
    assert found.variable_fps


def test_rounded_timestamps_of_a_constant_frame_rate_are_not_variable() -> None:
    found = probe(noise_video(container="matroska", frames=30))  # timestamps in whole milliseconds
    thirty = replace(found, times=tuple(round(index / 30, 3) for index in range(300)))
    assert {round(after - before, 4) for before, after in pairwise(thirty.times)} == {0.033, 0.034}
    assert not thirty.variable_fps
    assert replace(found, times=(0.0, 0.04, 0.08 + 2 * JITTER_SECONDS)).variable_fps


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"<html>404</html>" * 10, "text"),
        (audio_only(), "audio_only"),
        (counting_video(30)[:1500], "damaged"),
        (counting_video(30).replace(b"avc1", b"zzzz"), "unknown_codec"),
    ],
    ids=["empty", "html", "audio", "truncated", "unknown codec"],
)
def test_file_without_video_is_refused_with_the_same_reason_by_ranges(opened: Opened, data: bytes, kind: str) -> None:
    whole, ranges = refusal(lambda: probe(data)), refusal(lambda: probe_by_ranges(opened(data)))
    assert (whole.kind, ranges.kind) == (kind, kind)
    assert str(whole) == str(ranges) != ""


@pytest.mark.parametrize("limits", [Limits(seconds=0.19), Limits(frames=4)], ids=["seconds", "frames"])
def test_clip_above_the_limits_is_refused(opened: Opened, limits: Limits) -> None:
    data = noise_video(frames=5, size=(160, 120))
    assert refusal(lambda: probe(data, limits)).kind == "too_long"
    assert refusal(lambda: probe_by_ranges(opened(data), limits)).kind == "too_long"


def test_picture_too_large_after_stretching_is_refused() -> None:
    assert refusal(lambda: probe(noise_video(frames=5, pixel_aspect=Fraction(110, 1)))).kind == "too_large"


def test_too_large_picture_is_refused_with_its_size() -> None:
    error = refusal(lambda: probe(noise_video("mjpeg", frames=1, size=(20_000, 16), pixel_format="yuvj420p")))
    assert error.kind == "too_large"
    assert "20000x16" in str(error)


def test_truncated_file_is_refused_as_cut_off() -> None:
    with pytest.raises(UnreadableClip, match="cut off"):
        probe(counting_video(30)[:1500])


@pytest.fixture(scope="module")
def long_video() -> bytes:
    return noise_video(frames=100, size=(320, 240), movflags="faststart")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_probe_by_ranges_of_a_file_truncated_behind_its_index_equals_that_of_the_whole_file(
    opened: Opened, long_video: bytes, share: float
) -> None:
    data = long_video[: int(share * len(long_video))]
    assert probe_by_ranges(opened(data)) == probe(data)


@pytest.mark.parametrize("seed", range(60))
def test_probe_by_ranges_of_a_damaged_file_equals_that_of_the_whole_file(opened: Opened, seed: int) -> None:
    chance = random.Random(seed)
    damaged = bytearray(DAMAGEABLE[seed % 2])
    for _ in range(8):
        place = chance.choice([chance.randrange(2000), len(damaged) - 1 - chance.randrange(4000)])
        damaged[place] = chance.randrange(256)
    data = bytes(damaged)
    assert outcome(lambda: probe_by_ranges(opened(data))) == outcome(lambda: probe(data))


def test_playlist_does_not_open_other_files(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "secret.mp4").write_bytes(counting_video(8))
    playlist = f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n".encode()
    assert refusal(lambda: probe(playlist)).kind == "playlist"
    assert refusal(lambda: probe_by_ranges(opened(playlist))).kind == "playlist"
