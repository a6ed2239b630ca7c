"""Parser of H.264 slice headers, to distinguish field from frame pictures.

Sections and names are those of ITU-T H.264 (08/2021).
"""

from __future__ import annotations

from dataclasses import dataclass

from caption_assets.video.bits import Bits
from caption_assets.video.nal_units import unescaped

SEQUENCE_PARAMETERS = 7
"""Type of NAL units with a sequence parameter set (table 7-1)."""
SLICES = frozenset({1, 2, 5})
"""Types of NAL units that begin a coded slice (table 7-1)."""
IDR = 5
"""Type of the slices of an IDR picture (table 7-1)."""
WITH_CHROMA_FORMAT = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
"""Profiles whose sequence parameter sets contain the chroma format (section 7.3.2.1.1)."""
HEADER_BYTES = 32
"""Bytes of a slice that contain the parsed fields."""
SET_BYTES = 512
"""Bytes of a sequence parameter set that contain all its scaling lists and the parsed fields."""
INTRA_SLICES = frozenset({2, 4, 7, 9})
"""Types of intra slices (table 7-6)."""


@dataclass(frozen=True, slots=True)
class SequenceParameters:
    """The fields of a sequence parameter set that slice headers depend on."""

    frame_num_bits: int
    has_separate_planes: bool
    frames_only: bool
    """True if no picture is coded as two fields."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The fields of a slice's header that distinguish the fields of pictures."""

    frame_num: int
    parity: int | None
    """0 in a top field, 1 in a bottom field, None in a frame."""


def read_sequence_parameters(unit: memoryview) -> SequenceParameters:
    """Parse a sequence parameter set (section 7.3.2.1.1).

    Raises:
        ValueError: if it is truncated.
    """
    bits = Bits(unescaped(unit[1:SET_BYTES]))
    profile = bits.read(8)
    bits.read(16)  # constraint flags and level
    bits.read_ue()
    has_separate_planes = False
    if profile in WITH_CHROMA_FORMAT:
        chroma_format = bits.read_ue()
        has_separate_planes = chroma_format == 3 and bool(bits.read(1))
        bits.read_ue(), bits.read_ue(), bits.read(1)  # bit depths, qpprime_y_zero_transform_bypass_flag
        if bits.read(1):
            for number in range(12 if chroma_format == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    frame_num_bits = bits.read_ue() + 4
    order = bits.read_ue()
    if order == 0:
        bits.read_ue()
    elif order == 1:
        bits.read(1), bits.read_se(), bits.read_se()
        for _ in range(bits.read_ue()):
            bits.read_se()
    bits.read_ue(), bits.read(1), bits.read_ue(), bits.read_ue()  # references, gaps, width, height
    return SequenceParameters(frame_num_bits, has_separate_planes, bool(bits.read(1)))


def read_slice(unit: memoryview, parameters: SequenceParameters) -> Slice:
    """Parse the beginning of a slice's header (section 7.3.3).

    Raises:
        ValueError: if it is truncated.
    """
    bits = Bits(unescaped(unit[1:HEADER_BYTES]))
    bits.read_ue(), bits.read_ue(), bits.read_ue()  # first_mb_in_slice, slice_type, pic_parameter_set_id
    if parameters.has_separate_planes:
        bits.read(2)
    frame_num = bits.read(parameters.frame_num_bits)
    is_field = not parameters.frames_only and bits.read(1)
    return Slice(frame_num, bits.read(1) if is_field else None)


def is_intra(unit: memoryview) -> bool:
    """Whether a slice is intra coded.

    Raises:
        ValueError: if its header is truncated.
    """
    bits = Bits(unescaped(unit[1:HEADER_BYTES]))
    bits.read_ue()  # first_mb_in_slice
    return bits.read_ue() in INTRA_SLICES


def _skip_scaling_list(bits: Bits, size: int) -> None:
    """Skip a scaling list (section 7.3.2.1.1.1)."""
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.read_se()) % 256
        last = following or last
