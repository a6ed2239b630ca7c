import itertools

import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorTrc
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.tone import compress, hlg_inverse_oetf, is_hdr, pq_eotf, to_sdr

pytestmark = pytest.mark.fast

PQ, HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
BT2020 = int(ColorPrimaries.BT2020)


def pq(*nits: float) -> list[int]:
    """The 16-bit PQ signal of luminances in cd/m²: the inverse of the EOTF (SMPTE ST 2084:2014, section 5.2)."""
    power = (np.array(nits) / 10_000) ** (2610 / 16384)
    signal = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    return [round(65535 * value) for value in signal.tolist()]


def grays(levels: list[int], transfer: int) -> list[int]:
    """The levels to which a gray ramp of signal levels is mapped, after a check that each stays gray."""
    signal = np.repeat(np.array(levels, np.uint16)[None, :, None], 3, axis=2)
    shown = to_sdr(signal, transfer, BT2020)
    assert shown.dtype == np.uint8
    assert int(np.ptp(shown.astype(int), axis=-1).max()) <= 1
    return [int(level) for level in shown[0, :, 1]]


def test_only_pq_and_hlg_are_high_dynamic_range() -> None:
    assert [transfer for transfer in ColorTrc if is_hdr(transfer)] == [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67]


def test_pq_eotf_follows_the_standard() -> None:
    # ITU-R BT.2408, table 1: PQ levels of 26, 38 and 58 % are 5, 26 (nominally) and 203 cd/m².
    assert pq_eotf(np.array([0.0, 0.58, 1.0])) == pytest.approx([0, 203, 10_000], rel=0.02)


def test_hlg_inverse_oetf_follows_the_standard() -> None:
    # ITU-R BT.2100, table 5: half the signal is a twelfth of the light, the full signal is all of it.
    assert hlg_inverse_oetf(np.array([0.0, 0.5, 1.0])) == pytest.approx([0, 1 / 12, 1], abs=1e-6)


@pytest.mark.parametrize(("levels", "transfer"), [(pq(0, 203), PQ), ([0, round(0.75 * 65535)], HLG)], ids=["PQ", "HLG"])
def test_black_is_mapped_to_black_and_reference_white_to_near_white(levels: list[int], transfer: int) -> None:
    black, white = grays(levels, transfer)
    assert black == 0
    assert 220 <= white <= 235


def test_highlights_remain_distinct() -> None:
    levels = grays(pq(100, 203, 400, 600, 1000, 4000), PQ)
    assert all(brighter - darker >= 2 for darker, brighter in itertools.pairwise(levels))
    assert levels[-1] < 255


def test_shadows_are_not_compressed() -> None:
    # Below the knee, light as a fraction of 203 cd/m² is that of sRGB: 18 % gray is level 118 of 255.
    assert grays(pq(0.18 * 203), PQ) == [118]


def test_color_inside_bt709_keeps_its_chromaticity() -> None:
    # (120, 40, 40) cd/m² is .851, .148, .190 of white in BT.709. Red is compressed to .706, and the others by the same
    # factor to .123 and .158. In sRGB these are:
    assert to_sdr(np.array([[pq(120, 40, 40)]], np.uint16), PQ, BT2020)[0, 0].tolist() == pytest.approx(
        [219, 98, 111], abs=1
    )


def test_color_outside_bt709_is_clipped() -> None:
    assert to_sdr(np.array([[[65535, 0, 0]]], np.uint16), PQ, BT2020)[0, 0].tolist() == [255, 0, 0]


@given(st.lists(st.floats(0, 50, width=32), min_size=2, max_size=20))
def test_compression_is_monotonic(light: list[float]) -> None:
    shown = compress(np.sort(np.array(light)))
    assert np.all(np.diff(shown) >= 0)
    assert np.all((shown >= 0) & (shown < 1))
