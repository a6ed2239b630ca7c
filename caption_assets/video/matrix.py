"""The matrix between a frame's luma and colour differences and its RGB, as players take it."""

from __future__ import annotations

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace
from numpy.typing import NDArray

from caption_assets.video.tone import is_hdr

HD_LINES, HD_COLUMNS = 720, 1280
"""Lines or columns from which untagged pictures are taken for BT.709's, as players do; smaller ones for BT.601's."""
UNSPECIFIED = frozenset({0, 2, 3})
"""Matrix coefficients that tell nothing of luma and colour differences (ITU-T H.273, table 4): identity, which is for
RGB, unspecified, and reserved."""
SWSCALE_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
"""Matrix coefficients that FFmpeg's scaler converts."""
DERIVED: dict[int, int] = {ColorPrimaries.BT709: 1, ColorPrimaries.BT2020: 9}
"""Matrix coefficients that are derived from primaries (code 12), by those."""
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
"""Matrix coefficients that nothing here converts: they need more than a matrix, or more bits than are stored."""


def source_matrix(frame: VideoFrame) -> Colorspace:
    """Which of the scaler's matrices a frame of luma and colour differences was made with."""
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
    """RGB of full range from luma, green and orange differences (ITU-T H.273, equations 60 to 63).

    Args:
        planes: uint16 of shape (height, width, 3), in that order.
        color_range: of them, as FFmpeg has it.
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
