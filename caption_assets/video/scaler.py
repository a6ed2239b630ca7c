"""FFmpeg's scaler: pixel format and size of a picture are converted in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
"""The scaler's flags. Without accurate rounding, results depend on the CPU's instruction set, and pictures of unchanged
size are up to 3 levels too dark. Without full chroma input, the colors of RGB pictures are read from every other
column."""
PACKED = {"gbrp": "rgb24", "gbrap": "rgba"}
"""Interleaved formats by planar ones. A second pass interleaves twice as fast as numpy. In one pass, the scaler would
take two to three times as long."""


class Scaler:
    """A scaler for frames of one stream: its tables are kept as long as formats and sizes are the same.

    The size is changed by bicubic interpolation with antialiasing.
    """

    def __init__(self) -> None:
        self._planes = VideoReformatter()
        self._packing = VideoReformatter()

    def scale(
        self, frame: VideoFrame, pixel_format: str, height: int, width: int, matrix: Colorspace | None = None
    ) -> NDArray[Any]:
        """Convert a frame.

        Args:
            frame: the frame.
            pixel_format: planar RGB or 4:4:4, by FFmpeg's name.
            height: height of the result.
            width: width of the result.
            matrix: color space of a frame of luma and chroma; None if the frame states it, or is RGB.

        Returns:
            uint8 or uint16 of shape (height, width, channels); RGB in this order.
        """
        planes = self._planes.reformat(
            frame,
            width,
            height,
            pixel_format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=FLAGS,
            threads=1,
        )
        packed = self._packing.reformat(planes, format=PACKED.get(pixel_format), threads=1)
        return np.asarray(packed.to_ndarray())


def resize(picture: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize an RGB picture, uint8 or uint16 of shape (H, W, 3), as ``Scaler`` does."""
    if picture.shape[:2] == (height, width):
        return picture
    packed, planar = ("rgb24", "gbrp") if picture.dtype == np.uint8 else ("rgb48le", "gbrp16le")
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=packed)
    return Scaler().scale(frame, planar, height, width)
