"""Plots of caption tables: small PNG images, readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.8
"""Width, in inches of 100 pixels."""
HEIGHT = 1.8
"""Height, in inches."""
BAR_HEIGHT = 0.26
"""Height of a horizontal bar, in inches."""
MAX_KINDS = 8
"""Maximum number of bars. The rarest kinds of error share the last one."""
BINS = 30
"""Number of bins of a histogram."""
PALETTE = 32
"""Number of colors in an image. A palette reduces its size by two thirds."""
GRAY = "#767676"
"""Color of text and lines: the gray with a contrast of 4.5 to both white and black (WCAG AA)."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b0558a")
"""Colors of stages: blue, vermilion, bluish green and a darker reddish purple of Okabe and Ito, which color-blind
people can distinguish. Their contrast to the light and to the dark page is at least 3 (WCAG AA)."""
LINES = ("-", "--", ":")
"""Line styles. Each is used with all colors."""
MAX_NAME = 20
"""Maximum number of characters of a name in a plot; the name of a stage may have 63."""
MAX_FILLED = 2
"""Maximum number of filled histograms: more of them would hide each other."""


def length_plot(words: Mapping[str, Sequence[int]]) -> bytes:
    """Draw overlaid histograms of the number of words in a caption, one for each table.

    Args:
        words: number of words of each caption, by the table's name. There is at least one caption.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=100, layout="constrained")
    axes = figure.subplots()
    step = max(max(counts, default=0) for counts in words.values()) // BINS + 1
    edges = range(0, (BINS + 1) * step, step)
    is_filled = len(words) <= MAX_FILLED
    for (name, counts), (line, color) in zip(words.items(), cycle(product(LINES, COLORS)), strict=False):
        name = _shorten(name)
        if is_filled:
            axes.hist(counts, bins=edges, histtype="stepfilled", color=color, alpha=0.35, label=name)
        axes.hist(counts, bins=edges, histtype="step", color=color, linestyle=line, label=None if is_filled else name)
    axes.set_xlabel("words in a caption")
    axes.set_ylabel("captions")
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if not is_filled:
        figure.legend(loc="outside right upper", frameon=False, labelcolor=GRAY, fontsize="small")
    elif len(words) > 1:
        axes.legend(frameon=False, labelcolor=GRAY, fontsize="small")
    return _png(figure, axes)


def failures_plot(stage: str, kinds: Mapping[str, int]) -> bytes:
    """Draw the number of a stage's failed rows by kind of error, the most frequent kind on top.

    There is at least one kind.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts = sorted(kinds.items(), key=lambda kind: -kind[1])
    if len(counts) > MAX_KINDS:
        counts[MAX_KINDS - 1 :] = [("others", sum(count for _, count in counts[MAX_KINDS - 1 :]))]
    figure = Figure(figsize=(WIDTH, 0.7 + BAR_HEIGHT * len(counts)), dpi=100, layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in counts], [count for _, count in counts], color=COLORS[1], height=0.6)
    axes.bar_label(bars, padding=3, color=GRAY, fontsize="small")
    axes.set_ylim(len(counts) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlabel(f"rows without a caption in {_shorten(stage)}")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return _png(figure, axes)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _png(figure: Figure, axes: Axes) -> bytes:
    from PIL import Image

    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GRAY)
    axes.tick_params(colors=GRAY, labelsize="small")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(GRAY)
        label.set_fontsize("small")
    file = BytesIO()
    figure.savefig(file, format="png", transparent=True)
    small = BytesIO()
    Image.open(file).quantize(PALETTE, method=Image.Quantize.FASTOCTREE).save(small, "png", optimize=True)
    return small.getvalue()
