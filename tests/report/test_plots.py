from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from caption_assets.report.plots import MAX_KINDS, failures_plot, length_plot

pytestmark = pytest.mark.fast

MAX_BYTES = 8_000
"""Maximum size of a plot; a gallery embeds up to three."""
SHORT, LONG = [5, 6, 6, 7], [40, 52, 300, 1024]


@pytest.mark.parametrize(
    "words",
    [
        {"stage 1": SHORT},
        {"stage 1": [0]},
        {"stage 1": SHORT, "stage 2": LONG},
        {"stage 1": [], "stage 2": LONG},
        {f"stage {number}": [number * word for word in SHORT] for number in range(1, 7)},
        {f"{number} {'long name ' * 6}": SHORT for number in range(3)},
        {"stage 1": [number % 97 for number in range(5000)], "stage 2": [number % 311 for number in range(5000)]},
    ],
)
def test_length_plot_is_a_small_image(words: dict[str, list[int]]) -> None:
    png = length_plot(words)
    picture = Image.open(BytesIO(png))
    assert (picture.format, picture.size) == ("PNG", (480, 180))
    assert len(png) < MAX_BYTES


@pytest.mark.parametrize("count", [1, 4, 40])
def test_failures_plot_has_a_bar_for_each_frequent_kind(count: int) -> None:
    png = failures_plot("stage 1", {f"kind_{number}": 3**number for number in range(count)})
    picture = Image.open(BytesIO(png))
    assert picture.size == (480, 70 + 26 * min(count, MAX_KINDS))
    assert len(png) < MAX_BYTES


def test_plot_has_a_transparent_background() -> None:
    picture = Image.open(BytesIO(length_plot({"stage 1": SHORT}))).convert("RGBA")
    assert picture.getpixel((2, 2))[3] == 0  # type: ignore[index]


def test_length_plot_draws_stage2_over_stage1() -> None:
    def reddish(words: dict[str, list[int]]) -> int:
        picture = np.asarray(Image.open(BytesIO(length_plot(words))).convert("RGBA")).astype(int)
        return int((picture[..., 0] > picture[..., 2] + 60).sum())

    assert reddish({"stage 1": SHORT}) == 0
    assert reddish({"stage 1": SHORT, "stage 2": LONG}) > 0


def test_length_plot_draws_more_stages_than_colors() -> None:
    words = {f"stage {number}": [10 * number] * 4 for number in range(1, 8)}
    all_but_last = dict(list(words.items())[:-1])
    assert length_plot(words) != length_plot(all_but_last)
