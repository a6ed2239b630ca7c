"""Color primaries: conversion of wide gamuts to BT.709, which screens and models expect."""

from __future__ import annotations

from functools import cache

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray

D65 = (0.3127, 0.3290)
ILLUMINANT_C = (0.310, 0.316)
DCI = (0.314, 0.351)
CHROMATICITIES: dict[int, tuple[tuple[float, float], ...]] = {
    ColorPrimaries.BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65),
    ColorPrimaries.BT470M: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), ILLUMINANT_C),
    ColorPrimaries.BT470BG: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), D65),
    ColorPrimaries.SMPTE170M: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    ColorPrimaries.SMPTE240M: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    ColorPrimaries.FILM: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), ILLUMINANT_C),
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    ColorPrimaries.SMPTE431: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), DCI),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
    ColorPrimaries.EBU3213: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), D65),
}
"""x and y of red, green, blue and white (ITU-T H.273, table 2)."""
WIDE_PRIMARIES = frozenset(CHROMATICITIES) - {
    ColorPrimaries.BT709,
    ColorPrimaries.BT470BG,
    ColorPrimaries.SMPTE170M,
    ColorPrimaries.SMPTE240M,
    ColorPrimaries.EBU3213,
}
"""Primaries that are converted. Those of standard-definition television are close to BT.709's, and players and browsers
do not convert them."""
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
"""Matrix from XYZ to the cone responses in which white points are adapted (ICC.1:2022, annex E)."""
SCREEN_GAMMA = 2.4
"""Gamma of a reference screen for video (ITU-R BT.1886)."""
GAMMAS: dict[int, float] = {ColorTrc.GAMMA22: 2.2, ColorTrc.GAMMA28: 2.8, ColorTrc.SMPTE428: 2.6}
"""Gamma of the screens for other transfer characteristics (ITU-T H.273, table 3)."""

Floats = NDArray[np.floating]


@cache
def to_bt709(primaries: int) -> Floats:
    """The matrix from linear RGB of some primaries to linear RGB of BT.709, with white mapped to white.

    Args:
        primaries: code in ITU-T H.273, table 2; a key of ``CHROMATICITIES``.
    """
    theirs, ours = _to_xyz(primaries), _to_xyz(ColorPrimaries.BT709)
    white, wanted = (BRADFORD @ matrix.sum(axis=1) for matrix in (theirs, ours))
    adapted = np.linalg.inv(BRADFORD) @ np.diag(wanted / white) @ BRADFORD
    return np.asarray(np.linalg.inv(ours) @ adapted @ theirs, np.float32)


@cache
def luminance(primaries: int) -> Floats:
    """Weights of red, green and blue in luminance."""
    return np.asarray(_to_xyz(primaries)[1], np.float32)


def to_srgb(picture: NDArray[np.uint8], primaries: int, transfer: int) -> NDArray[np.uint8]:
    """Convert a picture of standard dynamic range with wide primaries to sRGB. Colors out of gamut are clipped.

    Args:
        picture: uint8 of shape (height, width, 3), full-range RGB.
        primaries: one of ``WIDE_PRIMARIES``: code in ITU-T H.273, table 2.
        transfer: code of its transfer characteristics, table 3.

    Returns:
        uint8 of the same shape.
    """
    levels = np.linspace(0, 1, 256)
    is_srgb = transfer == ColorTrc.IEC61966_2_1
    light = srgb_light(levels) if is_srgb else levels ** GAMMAS.get(transfer, SCREEN_GAMMA)
    shown = np.clip(light.astype(np.float32)[picture] @ to_bt709(primaries).T, 0, 1)
    return np.rint(255 * srgb(shown)).astype(np.uint8)


def srgb(light: Floats) -> Floats:
    """The sRGB signal of linear light from 0 to 1 (IEC 61966-2-1, section 5.2)."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def srgb_light(signal: Floats) -> Floats:
    """Linear light of an sRGB signal from 0 to 1 (IEC 61966-2-1, section 5.2)."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def _to_xyz(primaries: int) -> Floats:
    """The matrix from linear RGB to CIE XYZ, with white of luminance 1 (SMPTE RP 177)."""
    *colors, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in CHROMATICITIES[primaries])
    columns = np.stack(colors, axis=1)
    return np.asarray(columns * np.linalg.solve(columns, white))
