from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from caption_assets.video.preview import MAX_SIDE_PIXELS, make_preview

pytestmark = pytest.mark.fast


def moving_square(frames: int, height: int, width: int) -> np.ndarray:
    """Pictures of a white square that moves to the right on a blue background."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[..., 2] = 255
    for number in range(frames):
        left = number * (width - 20) // max(frames - 1, 1)
        pixels[number, 10:30, left : left + 20] = 255
    return pixels


@pytest.mark.parametrize(("height", "width"), [(56, 84), (364, 640), (840, 476), (28, 1400)])
def test_preview_is_small_and_keeps_the_aspect_ratio(height: int, width: int) -> None:
    preview = make_preview(moving_square(6, height, width), 2.0)
    for picture in (preview.animation, preview.poster):
        with Image.open(BytesIO(picture)) as shown:
            assert max(shown.size) <= MAX_SIDE_PIXELS
            assert shown.width / shown.height == pytest.approx(width / height, rel=0.5 if height == 28 else 0.05)


def test_animation_has_every_frame_and_poster_is_the_middle_frame() -> None:
    pixels = moving_square(9, 60, 100)
    preview = make_preview(pixels, 8.0)
    with Image.open(BytesIO(preview.animation)) as animation:
        assert animation.n_frames == 9  # type: ignore[attr-defined]
    with Image.open(BytesIO(preview.poster)) as picture:
        poster = np.asarray(picture.convert("RGB"))
    assert np.abs(poster.astype(int) - pixels[4]).mean() < 12
