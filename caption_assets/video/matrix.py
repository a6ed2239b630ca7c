"""Matrix coefficients: the conversion of a frame's luma and chroma to RGB that players apply."""

from __future__ import annotations

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace
from numpy.typing import NDArray

from caption_assets.video.tone import is_hdr

HD_LINES, HD_COLUMNS = 720, 1280
"""Minimum height or width at which players treat untagged pictures as BT.709; smaller ones are treated as BT.601."""
SWSCALE_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
"""FFmpeg's color spaces by matrix coefficients (ITU-T H.273, table 4)."""
DERIVED: dict[int, int] = {ColorPrimaries.BT709: 1, ColorPrimaries.BT2020: 9}
"""Matrix coefficients by primaries, for pictures in which they are derived from these (code 12)."""
YCGCO, FROM_PRIMARIES = 8, 12
UNSUPPORTED_MATRICES = {
    10: "BT.2020 of constant luminance",
    11: "SMPTE ST 2085",
    13: "primaries' constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
"""Unsupported matrix coefficients: they need more than a matrix, or more bits than are stored."""


def source_matrix(frame: VideoFrame) -> Colorspace:
    """The color space of a frame of luma and chroma. The scaler converts from it to RGB."""
    code = frame.colorspace
    if code == FROM_PRIMARIES:
        code = DERIVED.get(frame.color_primaries, 2)
    if code in SWSCALE_MATRICES:
        return SWSCALE_MATRICES[code]
    if frame.color_primaries == ColorPrimaries.BT2020 or is_hdr(frame.color_trc):
        return Colorspace.BT2020
    is_hd = frame.height >= HD_LINES or frame.width >= HD_COLUMNS
    return Colorspace.ITU709 if is_hd else Colorspace.ITU601


def ycgco_to_rgb(planes: NDArray[np.uint16], color_range: int) -> NDArray[np.uint16]:
    """Full-range RGB from luma, green and orange differences (ITU-T H.273, equations 60 to 63).

    Args:
        planes: uint16 of shape (height, width, 3), in that order.
        color_range: FFmpeg's color range of the planes.
    """
    values = planes.astype(np.float32) / 65536
    if color_range == ColorRange.JPEG:
        luma, difference = values[..., 0] * 65536 / 65535, (values[..., 1:] - 0.5) * 65536 / 65535
    else:
        luma, difference = (values[..., 0] * 256 - 16) / 219, (values[..., 1:] * 256 - 128) / 224
    green, orange = difference[..., 0], difference[..., 1]
    rest = luma - green
    rgb = np.stack([rest + orange, luma + green, rest - orange], axis=-1)
    return np.rint(65535 * np.clip(rgb, 0, 1)).astype(np.uint16)
