"""The picture of a decoded frame, as a player shows it: upright, with square pixels, in standard dynamic range."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from caption_assets.clips.container import check_size
from caption_assets.clips.tone import is_hdr, to_sdr

RGB = NDArray[np.uint8]
"""One picture, uint8 of shape (height, width, 3)."""


class Renderer:
    """Renders decoded frames of one stream.

    Args:
        stream: the frames' stream.
        size: height and width of the upright pictures, in pixels; None for those at which each is displayed.
    """

    def __init__(self, stream: VideoStream, size: tuple[int, int] | None) -> None:
        self._aspect = stream.sample_aspect_ratio or Fraction(1)
        self._size = size
        # One for all frames: a frame's own would be built anew for each, at ten times the time.
        self._converter = VideoReformatter()

    def render(self, frame: VideoFrame) -> RGB:
        """The picture of a decoded frame.

        Raises:
            UnreadableClip: if it would be displayed larger than is decoded.
        """
        turns = round(frame.rotation / 90) % 4
        if self._size is None:
            height, width = frame.height, max(round(frame.width * self._aspect), 1)
            check_size(width, height)
        else:
            height, width = self._size[::-1] if turns % 2 else self._size
        if is_hdr(frame.color_trc):
            flat = to_sdr(resize(_unpacked(frame, self._converter, "rgb48le"), height, width), frame.color_trc)
        else:
            flat = resize(rgb(frame, self._converter), height, width)
        return np.rot90(flat, turns)


def rgb(frame: VideoFrame, converter: VideoReformatter) -> RGB:
    """A decoded frame as uint8 (height, width, 3), as coded."""
    return _unpacked(frame, converter, "rgb24")


def resize(frame: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """One RGB frame, uint8 or uint16 (H, W, 3), to the same type and (``height``, ``width``, 3).

    Bicubic with antialiasing. It stays in uint8: float frames would cost four times the memory and the copying, for at
    most a few levels. There is no such kernel for uint16, which goes by way of float32.
    """
    import torch  # not above: definitions and listings load this module where there is no torch

    if frame.shape[:2] == (height, width):
        return frame
    pixels = torch.from_numpy(frame if frame.dtype == np.uint8 else frame.astype(np.float32))
    # The batch of one is made before the channels move: by its strides torch tells that they lie last, else it would
    # make the result planar, at half as much time again.
    batch = pixels.unsqueeze(0).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(batch, size=(height, width), mode="bicubic", antialias=True)
    result = np.asarray(scaled.permute(0, 2, 3, 1).squeeze(0).contiguous())
    if frame.dtype == np.uint8:
        return result
    return np.asarray(np.rint(np.clip(result, 0, np.iinfo(frame.dtype).max)), frame.dtype)


def stack(pictures: Sequence[RGB]) -> NDArray[np.uint8]:
    """Pictures as one array. Where a stream changes size midway, they take that of the first."""
    height, width = pictures[0].shape[:2]
    return np.stack([resize(each, height, width) for each in pictures])


def _unpacked(frame: VideoFrame, converter: VideoReformatter, pixel_format: str) -> NDArray[Any]:
    return np.asarray(converter.reformat(frame, format=pixel_format, threads=1).to_ndarray())
