"""Tests of the scaler against an exact conversion and an exact resize in float64."""

from __future__ import annotations

import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

from caption_assets.video.container import open_video
from caption_assets.video.scaler import Scaler, resize
from tests.videos import video

pytestmark = pytest.mark.fast

Floats = NDArray[np.float64]
SIZE = (180, 320)
FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le"]
SIZES = [(84, 140), (112, 196), SIZE, (196, 364)]
KR, KB = 0.2126, 0.0722
"""Kr and Kb of BT.709 (ITU-T H.273, table 4)."""


def cubic(distance: Floats) -> Floats:
    """The kernel of bicubic interpolation (Keys, 1981)."""
    a, x = -0.5, np.abs(distance)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def weights(inputs: int, outputs: int, shift: float = 0.0) -> Floats:
    """The matrix that resizes one axis with antialiasing; ``shift`` is the offset of the inputs, in inputs."""
    step = inputs / outputs
    centers = (np.arange(outputs) + 0.5) * step
    kernel = cubic((np.arange(inputs) + 0.5 + shift - centers[:, None]) / max(step, 1))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


def resized(plane: Floats, height: int, width: int, shift: float = 0.0) -> Floats:
    rows, columns = weights(plane.shape[0], height), weights(plane.shape[1], width, shift)
    return np.asarray(rows @ plane @ columns.T)


def planes(frame: VideoFrame) -> list[Floats]:
    """The planes' samples in units of 8 bits."""
    found = []
    for plane, component in zip(frame.planes, frame.format.components, strict=True):
        dtype = np.uint16 if component.bits > 8 else np.uint8
        samples = np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width]  # type: ignore[call-overload]
        found.append(samples / 2.0 ** (component.bits - 8))
    return found


def exact_rgb(frame: VideoFrame, height: int, width: int) -> Floats:
    """A frame of limited-range BT.709 luma and chroma as RGB levels, with chroma on the left as in MPEG-2 and H.264."""
    luma, *chroma = planes(frame)
    shift = (frame.width / chroma[0].shape[1] - 1) / -4
    y = (luma - 16) / 219
    u, v = ((resized(plane, frame.height, frame.width, shift) - 128) / 224 for plane in chroma)
    r, b = y + 2 * (1 - KR) * v, y + 2 * (1 - KB) * u
    g = (y - KR * r - KB * b) / (1 - KR - KB)
    levels = (resized(255 * np.clip(channel, 0, 1), height, width) for channel in (r, g, b))
    return np.clip(np.stack(list(levels), axis=-1), 0, 255)


def picture() -> NDArray[np.uint8]:
    """Soft shapes in muted colors, with some noise."""
    rng = np.random.default_rng(3)
    coarse = rng.uniform(60, 190, (12, 20, 3))
    soft = np.stack([resized(coarse[..., channel], *SIZE) for channel in range(3)], axis=-1)
    return np.asarray(np.clip(soft + rng.normal(0, 4, soft.shape), 0, 255), np.uint8)


def decoded(pixel_format: str) -> VideoFrame:
    """A frame of H.264, which states the place of its chroma."""
    with open_video(video([picture()] * 2, pix_fmt=pixel_format)) as (container, stream):
        return next(container.decode(stream))


def assert_close(found: NDArray[np.generic], exact: Floats) -> None:
    difference = found.astype(float) - exact
    assert abs(difference.mean()) < 0.1
    assert np.abs(difference).mean() < 0.5
    assert np.abs(difference).max() < 6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_frame_is_resized_and_converted_within_a_level(name: str, size: tuple[int, int]) -> None:
    frame = decoded(name)
    assert_close(Scaler().scale(frame, "gbrp", *size, Colorspace.ITU709), exact_rgb(frame, *size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["rgb24", "gbrp", "bgr0"])
def test_rgb_frame_is_resized_within_a_level(name: str, size: tuple[int, int]) -> None:
    given = picture()
    frame = VideoFrame.from_ndarray(given, format="rgb24").reformat(format=name)
    exact = np.stack([resized(given[..., channel].astype(float), *size) for channel in range(3)], axis=-1)
    assert_close(Scaler().scale(frame, "gbrp", *size), exact)


def test_resized_picture_equals_a_scaled_frame() -> None:
    frame = VideoFrame.from_ndarray(picture(), format="rgb24")
    assert np.array_equal(resize(picture(), 84, 140), Scaler().scale(frame, "gbrp", 84, 140))


def test_deep_picture_is_resized_as_one_of_8_bits() -> None:
    deep = resize(picture().astype(np.uint16) * 257, 84, 140)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - resize(picture(), 84, 140)).max() <= 2


def test_result_does_not_depend_on_earlier_frames() -> None:
    scaler = Scaler()
    first = scaler.scale(decoded("yuv420p"), "gbrp", 84, 140, Colorspace.ITU709)
    scaler.scale(decoded("yuv422p10le"), "gbrp16le", 112, 196, Colorspace.BT2020)
    scaler.scale(VideoFrame(64, 48, "yuv420p"), "gbrp", 84, 140, Colorspace.ITU601)
    assert np.array_equal(scaler.scale(decoded("yuv420p"), "gbrp", 84, 140, Colorspace.ITU709), first)
