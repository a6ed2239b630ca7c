"""The video that a model sees: the output of its processor for the frames that were sent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caption_assets.video.decode import Frames

CHANNELS = 3
MAX_VIDEOS = 65536
"""Maximum number of stored results: more than any processor cache has videos."""

Pixels = npt.NDArray[np.uint8]
Means = npt.NDArray[np.float64]
"""Mean of each channel of each frame, of shape (frames, channels)."""
Process = Callable[[Frames], Awaitable[Mapping[str, Any]]]
"""Runs the model's processor on a video and returns its tensors by name."""


@dataclass(frozen=True, slots=True)
class SeenVideo:
    """A video as the model sees it. None stands for what the processor's output does not show."""

    positions: tuple[int, ...] | None
    """Positions of the frames among those that were sent."""
    height: int | None
    """Height of each frame, in pixels."""
    width: int | None
    """Width of each frame, in pixels."""


UNREADABLE = SeenVideo(None, None, None)
"""The result for a processor whose output has an unknown form."""


@dataclass(frozen=True, slots=True)
class _Output:
    """The frames in a processor's output."""

    pixels: Any
    """Tensor of shape (temporal patches, patches, channels, frames of a patch, pixels of a patch)."""
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of frames, including repeats that fill the last temporal patch, with their height and width."""
        return int(self.pixels.shape[0] * self.pixels.shape[3]), self.height, self.width

    @property
    def means(self) -> Means:
        """Means over all pixels."""
        by_patch = self.pixels.float().mean(dim=(1, 4)).transpose(1, 2)
        return np.asarray(by_patch.reshape(-1, CHANNELS).double().numpy())


_Kind = tuple[tuple[int, ...], float]
"""Shape and frame rate of a video, which determine the processor's choice of size and frames."""


def _kind(frames: Frames) -> _Kind:
    return frames.pixels.shape, frames.fps


class SeenVideos:
    """Reads from the processor's output what a model sees of each video, and stores the result.

    Most processors return the number of frames that they keep, but none returns which ones. If one keeps fewer than
    were sent, it is run on a test video whose colors encode the frame numbers.

    Args:
        patch: side of a patch in pixels, for processors that split frames into patches; None for others.
        process: runs the processor on a video.
    """

    def __init__(self, patch: int | None, process: Process) -> None:
        self._patch = patch
        self._process = process
        self._videos: OrderedDict[str, SeenVideo] = OrderedDict()
        self._kept: dict[_Kind, tuple[int, ...] | None] = {}
        self._blank_shapes: dict[_Kind, tuple[int, int, int] | None] = {}
        self._levels: tuple[Means, Means] | None = None

    def of(self, video_id: str) -> SeenVideo:
        """The result for a video; ``UNREADABLE`` if there is none."""
        return self._videos.get(video_id, UNREADABLE)

    async def note(self, video_id: str, frames: Frames, output: Mapping[str, Any]) -> None:
        """Store the result for a video."""
        self._videos[video_id] = await self._read(frames, output)
        self._videos.move_to_end(video_id)
        if len(self._videos) > MAX_VIDEOS:
            self._videos.popitem(last=False)

    async def _read(self, frames: Frames, output: Mapping[str, Any]) -> SeenVideo:
        found = _read(output, self._patch)
        shape = found.shape if found else await self._blank_shape(frames)
        if shape is None:
            return UNREADABLE
        count, height, width = shape
        sent = len(frames.pixels)
        return SeenVideo(tuple(range(sent)) if count >= sent else await self._find_kept(frames), height, width)

    async def _blank_shape(self, frames: Frames) -> tuple[int, int, int] | None:
        """The shape of the output for a blank video of this kind; None if it cannot be read either.

        The engine's cache is not used: a cache in shared memory does not return the output.
        """
        if None in self._blank_shapes.values():
            return None
        if (kind := _kind(frames)) not in self._blank_shapes:
            blank = Frames(np.zeros_like(frames.pixels), frames.indices, frames.fps)
            found = _read(await self._process(blank), self._patch)
            self._blank_shapes[kind] = found.shape if found else None
        return self._blank_shapes[kind]

    async def _find_kept(self, frames: Frames) -> tuple[int, ...] | None:
        """Positions of the frames that the processor keeps of a video of this kind."""
        if (kind := _kind(frames)) not in self._kept:
            count, height, width, _ = frames.pixels.shape
            base = next(base for base in range(2, 256) if base**CHANNELS >= count)
            digits = np.stack([np.arange(count) // base**place % base for place in range(CHANNELS)], axis=1)
            colors = (digits * (255 // (base - 1))).astype(np.uint8)
            coded = np.broadcast_to(colors[:, None, None], (count, height, width, CHANNELS))
            black, white = await self._black_and_white(frames)
            means = await self._means(np.ascontiguousarray(coded), frames)
            if means is None or black is None or white is None:
                self._kept[kind] = None
            else:
                read = np.rint((means - black) / (white - black) * 255 / (255 // (base - 1))).astype(int)
                positions = (read * base ** np.arange(CHANNELS)).sum(axis=1)
                self._kept[kind] = tuple(dict.fromkeys(positions.tolist()))
        return self._kept[kind]

    async def _black_and_white(self, frames: Frames) -> tuple[Means | None, Means | None]:
        """The processor's output for the minimum and the maximum value of each channel."""
        if self._levels is None:
            black = await self._means(np.zeros_like(frames.pixels), frames)
            white = await self._means(np.full_like(frames.pixels, 255), frames)
            if black is None or white is None:
                return None, None
            self._levels = black[0], white[0]
        return self._levels

    async def _means(self, pixels: Pixels, frames: Frames) -> Means | None:
        found = _read(await self._process(Frames(pixels, frames.indices, frames.fps)), self._patch)
        return None if found is None else found.means


def _read(output: Mapping[str, Any], patch: int | None) -> _Output | None:
    """The frames in a processor's output: patches with a grid (Qwen, GLM), or whole frames (LLaVA-OneVision, InternVL).

    None for any other form.
    """
    pixels = output.get("pixel_values_videos")
    grid = output.get("video_grid_thw")
    if pixels is None or not hasattr(pixels, "shape"):
        return None
    if grid is not None and patch is not None and pixels.ndim == 2:
        rows = grid.reshape(-1, 3)
        times, (_, high, wide) = int(rows[:, 0].sum()), rows[0].tolist()
        depth, rest = divmod(pixels.shape[1], CHANNELS * patch**2)
        if rest or not depth or pixels.shape[0] != times * high * wide:
            return None
        return _Output(pixels.reshape(times, high * wide, CHANNELS, depth, patch**2), high * patch, wide * patch)
    if pixels.ndim == 5 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if grid is not None or pixels.ndim != 4 or pixels.shape[1] != CHANNELS:
        return None
    count, _, height, width = pixels.shape
    return _Output(pixels.reshape(count, 1, CHANNELS, 1, height * width), height, width)
