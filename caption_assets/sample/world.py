"""The toy world of the embedded sample: one shape on a plain background, and its captions.

The sample model is trained on this world and captions it correctly through the complete pipeline. Its clips are
therefore a test oracle: swapped channels, reversed frames or a wrong window all change the caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "brown": (100, 65, 40),
    "teal": (20, 120, 120),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS: dict[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
    "stays still": (0, 0),
}
"""Direction of each motion as (x, y), with y pointing down."""
SIZES: dict[str, tuple[float, float]] = {"small": (0.13, 0.17), "large": (0.21, 0.27)}
"""Minimum and maximum radius of each size, as a fraction of the frame's shorter side."""
VALUES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "motion": tuple(MOTIONS),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
}
"""The values of each attribute of a scene. Captions of stage 1 name the first three."""

COLOR_JITTER = 12
BACKGROUND_JITTER = 8
TRAVEL = (0.45, 0.70)
"""Minimum and maximum distance covered in the window, as a fraction of the frame's side along the motion."""
SQUARE_HALF_SIDE = 0.9
TRIANGLE_HALF_WIDTH = 1.1
TRIANGLE_TOP = 1.1
TRIANGLE_BOTTOM = 0.8
"""Extents of the shapes in radii, chosen so that shapes of the same size look equally large."""
EXTENT = 1.1
"""The largest of these extents: the minimum distance of a shape's center from the edge, in radii."""

Numbers = NDArray[np.floating[Any]]
Frame = NDArray[np.uint8]
"""One RGB picture, uint8 of shape (height, width, 3)."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one window of a sample clip."""

    color: str
    shape: str
    size: str
    motion: str
    background: str
    rgb: tuple[int, int, int]
    """Color of the shape after jitter."""
    background_rgb: tuple[int, int, int]
    """Color of the background after jitter."""
    radius: float
    """Radius as a fraction of the frame's shorter side."""
    start: tuple[float, float]
    """Center in the window's first frame, (x, y) as fractions of width and height."""
    end: tuple[float, float]
    """Center in the window's last frame, (x, y) as fractions of width and height."""
    noise: float
    """Standard deviation of the background noise, in 8-bit levels."""

    @property
    def stage1(self) -> str:
        """The correct stage-1 caption."""
        return stage1_caption(self.color, self.shape, self.motion)

    @property
    def stage2(self) -> str:
        """The correct stage-2 caption, given the correct stage-1 caption."""
        return stage2_caption(self.color, self.shape, self.motion, self.size, self.background)

    @property
    def attributes(self) -> dict[str, str]:
        """The values of ``VALUES`` that the scene shows."""
        return {name: getattr(self, name) for name in VALUES}

    @property
    def answers(self) -> dict[str, str]:
        """The correct answers by stage of the recipe ``sample``, each given the correct answers of earlier stages."""
        return {
            "stage1_captions": self.stage1,
            "stage2_captions": self.stage2,
            "attributes": attributes_json(**self.attributes),
            "alignment": "yes",
            "short": short_caption(self.color, self.shape, self.motion),
        }

    def center(self, time: float) -> tuple[float, float]:
        """The center at ``time`` (0 at the first frame, 1 at the last), as fractions of width and height."""
        (x0, y0), (x1, y1) = self.start, self.end
        return x0 + (x1 - x0) * time, y0 + (y1 - y0) * time


def stage1_caption(color: str, shape: str, motion: str) -> str:
    """The stage-1 sentence for three attributes."""
    return f"A {color} {shape} {motion}."


def stage2_caption(color: str, shape: str, motion: str, size: str, background: str) -> str:
    """The stage-2 sentence for five attributes."""
    return f"A {size} {color} {shape} {motion} on a {background} background."


def attributes_json(color: str, shape: str, motion: str, size: str, background: str) -> str:
    """Five attributes as JSON, as the sample model writes it."""
    return json.dumps({"shape": shape, "colour": color, "size": size, "motion": motion, "background": background})


def short_caption(color: str, shape: str, motion: str) -> str:
    """The short form of a description."""
    return f"{color} {shape}, {motion}"


def random_scene(rng: np.random.Generator, width: int, height: int) -> Scene:
    """Draw a random scene whose shape stays inside a frame of ``width`` by ``height`` pixels."""
    color, shape, size, motion, background = (
        str(rng.choice(list(values))) for values in (COLORS, SHAPES, SIZES, MOTIONS, BACKGROUNDS)
    )
    radius = float(rng.uniform(*SIZES[size]))
    margins = [EXTENT * radius * min(width, height) / side for side in (width, height)]
    path = [_path(rng, margin, direction) for margin, direction in zip(margins, MOTIONS[motion], strict=True)]
    return Scene(
        color=color,
        shape=shape,
        size=size,
        motion=motion,
        background=background,
        rgb=_jitter(rng, COLORS[color], COLOR_JITTER),
        background_rgb=_jitter(rng, BACKGROUNDS[background], BACKGROUND_JITTER),
        radius=radius,
        start=(path[0][0], path[1][0]),
        end=(path[0][1], path[1][1]),
        noise=float(rng.uniform(1.0, 4.0)),
    )


def render(scene: Scene, width: int, height: int, times: Sequence[float], rng: np.random.Generator) -> Iterator[Frame]:
    """Render the scene at each of ``times`` (0 to 1), as uint8 RGB frames of shape (height, width, 3)."""
    for time in times:
        frame = _background(scene, width, height, rng)
        _draw_shape(frame, scene, time)
        yield frame


def _jitter(rng: np.random.Generator, rgb: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(level + rng.integers(-amount, amount + 1), 0, 255)) for level in rgb)
    return red, green, blue


def _path(rng: np.random.Generator, margin: float, direction: int) -> tuple[float, float]:
    """First and last coordinate along one axis, as fractions, at least ``margin`` from both edges."""
    room = 1.0 - 2.0 * margin
    travel = direction * float(rng.uniform(TRAVEL[0], min(TRAVEL[1], max(room, TRAVEL[0])))) if direction else 0.0
    low, high = margin - min(travel, 0.0), 1.0 - margin - max(travel, 0.0)
    start = float(rng.uniform(low, high)) if low < high else (low + high) / 2.0
    return start, start + travel


@lru_cache(maxsize=1)
def _noise_bank() -> NDArray[np.float32]:
    """Unit Gaussian noise, from which frames cut tiles at random offsets: new noise would dominate rendering time."""
    return np.random.default_rng(20_240_901).standard_normal((1024, 2048)).astype(np.float32)


def _background(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Frame:
    bank = _noise_bank()
    top, left = int(rng.integers(bank.shape[0])), int(rng.integers(bank.shape[1]))
    rows = np.arange(top, top + height) % bank.shape[0]
    columns = np.arange(left, left + width) % bank.shape[1]
    noise = np.rint(bank[rows][:, columns] * scene.noise).astype(np.int16)
    # Channel by channel: this takes half as long as broadcasting over the last axis.
    return np.stack([np.clip(noise + level, 0, 255).astype(np.uint8) for level in scene.background_rgb], axis=-1)


def _draw_shape(frame: Frame, scene: Scene, time: float) -> None:
    """Blend the shape into ``frame`` in place, with antialiased edges."""
    height, width, _ = frame.shape
    radius = scene.radius * min(width, height)
    center_x, center_y = (c * side for c, side in zip(scene.center(time), (width, height), strict=True))
    reach = EXTENT * radius + 2.0
    left, right = max(0, int(center_x - reach)), min(width, int(center_x + reach) + 1)
    top, bottom = max(0, int(center_y - reach)), min(height, int(center_y + reach) + 1)
    x = np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - center_x
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - center_y
    cover = np.clip(0.5 - _signed_distance(scene.shape, x, y, radius), 0.0, 1.0)[:, :, None]
    patch = frame[top:bottom, left:right]
    blended = patch * (1.0 - cover) + np.asarray(scene.rgb, dtype=np.float32) * cover
    frame[top:bottom, left:right] = np.rint(blended).astype(np.uint8)


def _signed_distance(shape: str, x: Numbers, y: Numbers, radius: float) -> Numbers:
    """Distance of each pixel from the shape's edge, in pixels; negative inside."""
    distance: Numbers
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - SQUARE_HALF_SIDE * radius
    else:
        slope = TRIANGLE_HALF_WIDTH / (TRIANGLE_TOP + TRIANGLE_BOTTOM)
        side = (np.abs(x) - slope * (y + TRIANGLE_TOP * radius)) / np.hypot(1.0, slope)
        distance = np.maximum(side, y - TRIANGLE_BOTTOM * radius)
    return distance
