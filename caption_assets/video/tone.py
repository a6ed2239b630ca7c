"""Tone mapping of high dynamic range: PQ and HLG pictures as they look on a standard screen."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray

from caption_assets.video.primaries import CHROMATICITIES, Floats, luminance, srgb, to_bt709

REFERENCE_WHITE = 203.0
"""Luminance of diffuse white in an HDR picture, in cd/m² (ITU-R BT.2408, "HDR Reference White")."""
KNEE = 0.5
"""Share of reference white up to which the tone curve is the identity. With this value white becomes level 225 of 255,
and highlights take the levels above it (400 cd/m²: 240; 1,000: 249; 10,000: 254)."""
HLG_PEAK = 1000.0
"""Peak luminance of HLG's reference display, in cd/m² (ITU-R BT.2100, table 5)."""
HLG_GAMMA = 1.2
"""System gamma of that display (ITU-R BT.2100, table 5)."""


def is_hdr(transfer: int) -> bool:
    """Whether pictures with this transfer characteristic (``VideoFrame.color_trc``) need tone mapping."""
    return transfer in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)


def to_sdr(signal: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """Convert an HDR picture to BT.709 primaries and sRGB's transfer function.

    The channels of a pixel are scaled by the same factor, so that hues are preserved and gray stays gray.

    Args:
        signal: uint16 of shape (height, width, 3), full-range RGB.
        transfer: ``SMPTE2084`` (PQ) or ``ARIB_STD_B67`` (HLG).
        primaries: code in ITU-T H.273, table 2; unknown ones are treated as BT.2020, the only ones in ITU-R BT.2100.

    Returns:
        uint8 of the same shape.
    """
    known = primaries if primaries in CHROMATICITIES else int(ColorPrimaries.BT2020)
    light = _pq_light(signal) if transfer == ColorTrc.SMPTE2084 else _hlg_light(signal, luminance(known))
    light = np.maximum(light @ to_bt709(known).T, 0) / REFERENCE_WHITE  # colors outside BT.709 are clipped
    brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    light *= compress(brightest) / brightest
    return np.rint(255 * srgb(light)).astype(np.uint8)


def compress(light: Floats) -> Floats:
    """The tone curve: the identity up to ``KNEE``, then a hyperbola of the same slope that approaches 1.

    Args:
        light: linear light in shares of reference white, of any shape.
    """
    above = np.maximum(light - KNEE, 0) / (1 - KNEE)
    return np.asarray(np.minimum(light, KNEE) + (1 - KNEE) * above / (1 + above))


def _pq_light(signal: NDArray[np.uint16]) -> Floats:
    """Linear light of each channel, in cd/m²."""
    return _table(pq_eotf)[signal]


def _hlg_light(signal: NDArray[np.uint16], shares: Floats) -> Floats:
    """Linear light of each channel on the reference display, in cd/m²: BT.2100's OOTF after its inverse OETF."""
    scene = _table(hlg_inverse_oetf)[signal]
    luminance = scene @ shares
    return scene * (HLG_PEAK * luminance ** (HLG_GAMMA - 1))[..., None]


def pq_eotf(signal: Floats) -> Floats:
    """Luminance in cd/m² of a PQ signal from 0 to 1 (SMPTE ST 2084:2014, section 5.1; ITU-R BT.2100, table 4)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = signal ** (1 / m2)
    return np.asarray(10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1))


def hlg_inverse_oetf(signal: Floats) -> Floats:
    """Linear scene light from 0 to 1 of an HLG signal from 0 to 1 (ITU-R BT.2100, table 5)."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


@cache
def _table(curve: Callable[[Floats], Floats]) -> Floats:
    """A curve's values at all 65,536 levels of a 16-bit signal: look-ups are faster than powers."""
    return curve(np.linspace(0, 1, 1 << 16)).astype(np.float32)
