import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from caption_assets.video.matrix import source_matrix, ycgco_to_rgb

pytestmark = pytest.mark.fast

UNSPECIFIED, FROM_PRIMARIES = 2, 12
"""Codes of matrix coefficients (ITU-T H.273, table 4)."""


def frame_of(
    matrix: int,
    size: tuple[int, int] = (64, 48),
    *,
    primaries: int = ColorPrimaries.UNSPECIFIED,
    transfer: int = ColorTrc.UNSPECIFIED,
) -> VideoFrame:
    frame = VideoFrame(*size, "yuv420p")
    frame.colorspace, frame.color_primaries, frame.color_trc = matrix, primaries, transfer
    return frame


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, Colorspace.ITU709),
        (4, Colorspace.FCC),
        (5, Colorspace.ITU601),
        (6, Colorspace.ITU601),
        (7, Colorspace.SMPTE240M),
        (9, Colorspace.BT2020),
    ],
)
@pytest.mark.parametrize("size", [(64, 48), (1280, 720)])
def test_source_matrix_is_that_of_the_frames_code(code: int, expected: Colorspace, size: tuple[int, int]) -> None:
    assert source_matrix(frame_of(code, size)) == expected


@pytest.mark.parametrize(
    ("primaries", "size", "expected"),
    [
        (ColorPrimaries.BT709, (64, 48), Colorspace.ITU709),
        (ColorPrimaries.BT2020, (64, 48), Colorspace.BT2020),
        (ColorPrimaries.SMPTE170M, (64, 48), Colorspace.ITU601),
        (ColorPrimaries.SMPTE170M, (1280, 720), Colorspace.ITU709),
    ],
)
def test_source_matrix_of_code_12_is_derived_from_the_primaries(
    primaries: int, size: tuple[int, int], expected: Colorspace
) -> None:
    assert source_matrix(frame_of(FROM_PRIMARIES, size, primaries=primaries)) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1279, 719), Colorspace.ITU601),
        ((1280, 64), Colorspace.ITU709),
        ((64, 720), Colorspace.ITU709),
    ],
)
def test_source_matrix_of_an_untagged_frame_depends_on_its_size(size: tuple[int, int], expected: Colorspace) -> None:
    assert source_matrix(frame_of(UNSPECIFIED, size)) == expected


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
def test_source_matrix_of_an_untagged_hdr_frame_is_bt2020(transfer: int) -> None:
    assert source_matrix(frame_of(UNSPECIFIED, transfer=transfer)) == Colorspace.BT2020


def test_source_matrix_of_an_untagged_frame_with_bt2020_primaries_is_bt2020() -> None:
    assert source_matrix(frame_of(UNSPECIFIED, primaries=ColorPrimaries.BT2020)) == Colorspace.BT2020


@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
def test_ycgco_is_converted_by_the_equations_of_the_standard(color_range: ColorRange) -> None:
    rgb = np.array([[(0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.2, 0.5, 0.7)]])
    r, g, b = np.moveaxis(rgb, -1, 0)
    luma, green, orange = g / 2 + (r + b) / 4, g / 2 - (r + b) / 4, (r - b) / 2  # ITU-T H.273, equations 60 to 62
    if color_range == ColorRange.JPEG:
        planes = [65535 * luma, 65535 * green + 32768, 65535 * orange + 32768]
    else:
        planes = [256 * (16 + 219 * luma), 256 * (128 + 224 * green), 256 * (128 + 224 * orange)]
    coded = np.clip(np.rint(np.stack(planes, axis=-1)), 0, 65535).astype(np.uint16)
    converted = ycgco_to_rgb(coded, color_range)
    assert converted.dtype == np.uint16
    assert np.abs(converted - 65535 * rgb).max() <= 3
