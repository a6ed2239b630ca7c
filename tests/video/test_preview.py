from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from caption_assets.video.preview import FRAMES, MAX_PIXELS, make_preview

pytestmark = pytest.mark.fast


def moving_square(frames: int, height: int, width: int) -> np.ndarray:
    """Pictures of a white square that moves to the right on a blue background."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[..., 2] = 255
    for number in range(frames):
        left = number * (width - 20) // max(frames - 1, 1)
        pixels[number, 10:30, left : left + 20] = 255
    return pixels


@pytest.mark.parametrize(("height", "width"), [(56, 84), (364, 640), (840, 476), (28, 1400), (1400, 28)])
def test_preview_is_small_and_keeps_the_aspect_ratio(height: int, width: int) -> None:
    preview = make_preview(moving_square(6, height, width))
    with Image.open(BytesIO(preview.jpeg)) as shown:
        shown_height = shown.height / preview.frames
        assert shown.format == "JPEG"
        assert shown.width * shown_height <= MAX_PIXELS
        assert shown.width / shown_height == pytest.approx(width / height, rel=0.1 if 28 in (height, width) else 0.03)


@pytest.mark.parametrize("count", [1, 2, 5, 21])
def test_preview_has_frames_from_the_first_to_the_last(count: int) -> None:
    pixels = moving_square(count, 60, 100)
    preview = make_preview(pixels)
    assert preview.frames == min(count, FRAMES)
    with Image.open(BytesIO(preview.jpeg)) as picture:
        shown = np.asarray(picture.convert("RGB")).reshape(preview.frames, 60, 100, 3)
    for frame, expected in zip(shown[[0, -1]], pixels[[0, -1]], strict=True):
        assert np.abs(frame.astype(int) - expected).mean() < 12
