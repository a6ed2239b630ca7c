from io import BytesIO

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from caption_assets.clips.container import UnreadableClip
from caption_assets.clips.decode import RGB, decode, resize, rgb
from caption_assets.sample.clips import encode_frames
from tests.videos import counting_video, level

pytestmark = pytest.mark.fast


def levels(pixels: RGB) -> list[int]:
    return [round(float(frame.mean())) for frame in pixels]


def test_frames_are_those_of_the_window_in_order() -> None:
    frames = decode(counting_video(60), 20, 41, 6, (48, 64))
    assert frames.indices == (20, 24, 28, 32, 36, 40)
    assert levels(frames.pixels) == pytest.approx([level(index) for index in frames.indices], abs=2)


def test_the_rate_is_that_of_the_chosen_frames() -> None:
    frames = decode(counting_video(51, fps=25), 0, 51, 6, (48, 64))
    assert frames.fps == pytest.approx(2.5)


def test_a_variable_rate_is_sampled_by_time() -> None:
    data = counting_video(8, fps=10, stamps=[0, 1, 2, 3, 4, 5, 30, 60])
    frames = decode(data, 0, 8, 4, (48, 64))
    assert frames.indices == (0, 5, 6, 7)
    assert frames.fps == pytest.approx(0.5)


def test_frames_equal_a_plain_decode_and_the_same_resize() -> None:
    data = counting_video(40, size=(160, 120))
    with av.open(BytesIO(data), "r") as container:
        plain = [rgb(frame, VideoReformatter()) for frame in container.decode(video=0)]
    frames = decode(data, 0, 40, 8, (56, 84))
    expected = np.stack([resize(plain[index], 56, 84) for index in frames.indices])
    assert np.array_equal(frames.pixels, expected)


def test_pixels_are_uint8_rgb_of_the_size_asked_for() -> None:
    frames = decode(counting_video(16), 0, 16, 4, (28, 84))
    assert frames.pixels.dtype == np.uint8
    assert frames.pixels.shape == (4, 28, 84, 3)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_colours_survive_encoding_and_decoding(codec: str) -> None:
    rgb_values = (220, 40, 90)
    plain = np.full((120, 160, 3), rgb_values, dtype=np.uint8)
    data = encode_frames([plain] * 10, 160, 120, 10, codec, 20)
    assert decode(data, 0, 10, 4, (120, 160)).pixels.reshape(-1, 3).mean(0) == pytest.approx(rgb_values, abs=6)


def test_channels_keep_their_order_in_a_resize() -> None:
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[..., 0] = 200
    assert resize(red, 28, 28).reshape(-1, 3).mean(0).round().tolist() == [200, 0, 0]


def test_frames_that_cannot_be_decoded_are_told_of() -> None:
    data = bytearray(counting_video(60, size=(160, 120)))
    pictures = slice(data.index(b"mdat") + 8, data.index(b"moov") - 4)
    data[pictures] = bytes(len(data[pictures]))  # the index is whole, the pictures are gone
    with pytest.raises(UnreadableClip) as refused:
        decode(bytes(data), 0, 60, 8, (56, 84))
    assert refused.value.kind == "damaged"
