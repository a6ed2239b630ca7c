import gc
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream

from caption_assets.errors import UnreadableClip
from caption_assets.sample.clips import encode_frames
from caption_assets.video.container import open_video, read_track
from caption_assets.video.picture import RGB, Renderer
from caption_assets.video.probe import probe
from caption_assets.video.scaler import Scaler
from caption_assets.video.track import DEFAULT_TRACK
from tests.videos import (
    VIDEO_KINDS,
    counting_video,
    decode,
    hdr_video,
    level,
    moving_video,
    video,
    video_cut_at_an_open_group,
    video_cut_within_a_group,
    video_of_kind,
    video_that_grows,
    video_with_changing_parameter_sets,
    video_with_missing_timestamps,
    video_with_parameter_sets_in_samples,
    video_with_restarting_timestamps,
    video_without_sync_table,
)

pytestmark = pytest.mark.fast


def levels(pixels: RGB) -> list[int]:
    return [round(float(frame.mean())) for frame in pixels]


def test_decode_returns_the_windows_frames_in_order() -> None:
    frames = decode(counting_video(60), 20, 41, 6, (48, 64))
    assert frames.indices == (20, 24, 28, 32, 36, 40)
    assert levels(frames.pixels) == pytest.approx([level(index) for index in frames.indices], abs=2)


def test_decoded_frames_are_freed_without_garbage_collection() -> None:
    data = moving_video(48)
    gc.collect()
    gc.disable()
    try:
        decode(data, 0, 48, 24, (64, 64))
        assert not any(isinstance(thing, VideoFrame) for thing in gc.get_objects())
    finally:
        gc.enable()


def test_fps_is_that_of_the_chosen_frames() -> None:
    frames = decode(counting_video(51, fps=25), 0, 51, 6, (48, 64))
    assert frames.fps == pytest.approx(2.5)


def test_video_of_variable_frame_rate_is_sampled_by_time() -> None:
    data = counting_video(8, fps=10, timestamps=[0, 1, 2, 3, 4, 5, 30, 60])
    frames = decode(data, 0, 8, 4, (48, 64))
    assert frames.indices == (0, 5, 6, 7)
    assert frames.fps == pytest.approx(0.5)


def plain_decode(data: bytes, size: tuple[int, int]) -> list[RGB]:
    """Every frame as displayed, decoded in one pass."""
    with open_video(data) as (container, stream):
        renderer = Renderer(stream, read_track(data, stream), size)
        return [renderer.render(frame).pixels for frame in container.decode(stream)]


def assert_equals_plain_decode(data: bytes) -> None:
    plain = plain_decode(data, (40, 56))
    total = len(plain)
    third = total // 3
    windows = {(0, total, 2), (0, total, 7), (third, 2 * third + 1, 4), (third, third + 1, 2), (total - 1, total, 2)}
    windows |= {(start, min(start + 9, total), 4) for start in range(0, total, 5)}
    for start, end, count in sorted(windows):
        frames = decode(data, start, end, count, (40, 56))
        assert frames.indices[0] == start
        assert frames.indices[-1] == end - 1
        for pixels, index in zip(frames.pixels, frames.indices, strict=True):
            assert np.array_equal(pixels, plain[index]), f"frame {index} of {start} to {end}"


@pytest.mark.parametrize("name", VIDEO_KINDS)
def test_frames_equal_a_plain_decode(name: str) -> None:
    assert_equals_plain_decode(video_of_kind(name))


UNUSUAL = [
    video_that_grows,
    video_without_sync_table,
    video_with_restarting_timestamps,
    partial(video_with_restarting_timestamps, "mpeg"),
    video_with_missing_timestamps,
    partial(video_with_changing_parameter_sets, "flv"),
    partial(video_with_changing_parameter_sets, "mpegts"),
    partial(video_with_parameter_sets_in_samples, "mp4"),
    partial(video_with_parameter_sets_in_samples, "matroska"),
]


@pytest.mark.parametrize("make", UNUSUAL)
def test_frames_of_an_unusual_file_equal_a_plain_decode(make: Callable[[], bytes]) -> None:
    assert_equals_plain_decode(make())


@pytest.mark.parametrize("make", [video_cut_within_a_group, video_cut_at_an_open_group])
def test_clip_cut_at_its_beginning_begins_with_its_first_keyframe(make: Callable[[], bytes]) -> None:
    cut, whole = make(), video_of_kind("h264 transport stream")
    assert probe(cut).frames == 36
    assert np.array_equal(decode(cut, 0, 36, 8, (40, 56)).pixels, decode(whole, 12, 48, 8, (40, 56)).pixels)


def test_pixels_are_uint8_rgb_of_the_requested_size() -> None:
    frames = decode(counting_video(16), 0, 16, 4, (28, 84))
    assert frames.pixels.dtype == np.uint8
    assert frames.pixels.shape == (4, 28, 84, 3)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_colors_survive_encoding_and_decoding(codec: str) -> None:
    rgb_values = (220, 40, 90)
    plain = np.full((120, 160, 3), rgb_values, dtype=np.uint8)
    data = encode_frames([plain] * 10, 160, 120, 10, codec, 20)
    assert decode(data, 0, 10, 4, (120, 160)).pixels.reshape(-1, 3).mean(0) == pytest.approx(rgb_values, abs=6)


@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_pictures_are_rotated_by_the_files_display_matrix(degrees: int, corner: tuple[int, int]) -> None:
    quarter_white = np.zeros((48, 96, 3), np.uint8)
    quarter_white[:24, :48] = 255  # top left as coded; a counterclockwise quarter turn moves it to the bottom left
    data = video([quarter_white] * 4, prepare=lambda stream: stream.set_display_rotation(degrees))
    upright = decode(data, 0, 4, 2, None).pixels[0]
    assert upright.shape == ((96, 48, 3) if degrees % 180 else (48, 96, 3))
    height, width = upright.shape[0] // 2, upright.shape[1] // 2
    quarters = [[float(upright[:height, :width].mean()), float(upright[:height, width:].mean())]]
    quarters += [[float(upright[height:, :width].mean()), float(upright[height:, width:].mean())]]
    assert quarters[corner[0]][corner[1]] > 200
    assert sum(map(sum, quarters)) < 300


def test_size_is_that_of_the_rotated_picture() -> None:
    data = moving_video(4, prepare=lambda stream: stream.set_display_rotation(90))
    assert decode(data, 0, 4, 2, (80, 40)).pixels.shape == (2, 80, 40, 3)


def anamorphic(aspect: Fraction, size: tuple[int, int] = (96, 64)) -> bytes:
    def prepare(stream: VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = aspect

    return moving_video(4, size, prepare=prepare)


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(4, 3), 128), (Fraction(1, 2), 48), (Fraction(1), 96)])
def test_anamorphic_pictures_are_stretched_to_square_pixels(aspect: Fraction, width: int) -> None:
    assert decode(anamorphic(aspect), 0, 4, 2, None).pixels.shape == (2, 64, width, 3)


def test_picture_too_large_after_stretching_is_refused() -> None:
    with open_video(anamorphic(Fraction(60), (320, 64))) as (_, stream), pytest.raises(UnreadableClip) as refused:
        Renderer(stream, DEFAULT_TRACK, None).render(VideoFrame(320, 64))
    assert refused.value.kind == "too_large"


def test_pictures_without_a_requested_size_are_unchanged() -> None:
    with open_video(video_of_kind("h264")) as (container, stream):
        first = next(Scaler().scale(frame, "gbrp", frame.height, frame.width) for frame in container.decode(stream))
    assert np.array_equal(decode(video_of_kind("h264"), 0, 48, 2, None).pixels[0], first)


def test_video_whose_size_changes_keeps_its_first_size() -> None:
    assert decode(video_that_grows(), 0, 48, 4, None).pixels.shape == (4, 48, 64, 3)


@pytest.mark.parametrize(("transfer", "white"), [(ColorTrc.SMPTE2084, 0.5807), (ColorTrc.ARIB_STD_B67, 0.75)])
def test_hdr_pictures_are_mapped_to_sdr(transfer: ColorTrc, white: float) -> None:
    signal = np.zeros((64, 64, 3), np.uint16)
    signal[:, 32:] = round(white * 65535)  # reference white, 203 cd/m²
    shown = decode(hdr_video(signal, transfer), 0, 4, 2, (32, 32)).pixels[0]
    assert float(shown[:, :12].mean()) < 3
    assert shown[:, 20:].reshape(-1, 3).mean(0) == pytest.approx([225] * 3, abs=3)


def test_file_with_undecodable_pictures_is_refused() -> None:
    data = bytearray(counting_video(60, size=(160, 120)))
    pictures = slice(data.index(b"mdat") + 8, data.index(b"moov") - 4)
    data[pictures] = bytes(len(data[pictures]))  # the index is intact, the pictures are erased
    with pytest.raises(UnreadableClip) as refused:
        decode(bytes(data), 0, 60, 8, (56, 84))
    assert refused.value.kind == "damaged"
