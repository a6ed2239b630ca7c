"""Parser of H.264 parameter sets and of the fields of slice headers that distinguish field from frame pictures.

Sections and names are those of ITU-T H.264 (08/2021).
"""

from __future__ import annotations

from dataclasses import dataclass

from caption_assets.video.bits import Bits
from caption_assets.video.nal_units import unescaped

SEQUENCE_PARAMETERS, PICTURE_PARAMETERS = 7, 8
"""Types of NAL units with a sequence and a picture parameter set (table 7-1)."""
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
    has_chroma: bool = True
    order_type: int = 0
    """``pic_order_cnt_type``."""
    order_bits: int = 0
    """Bits of ``pic_order_cnt_lsb``, if ``order_type`` is 0."""
    max_references: int = 0
    """``max_num_ref_frames``."""
    may_have_gaps: bool = False
    """Whether ``frame_num`` may skip values."""


@dataclass(frozen=True, slots=True)
class PictureParameters:
    """The fields of a picture parameter set that slice headers depend on."""

    active: tuple[int, int]
    """Default number of active entries of both reference lists."""
    has_weights: bool
    """Whether P slices contain prediction weights."""
    has_bipred_weights: bool
    """Whether B slices do."""
    has_redundant_pictures: bool
    is_cabac: bool
    """Whether slices are coded by CABAC, not by CAVLC."""
    quantizer: int
    """The quantization parameter to which slices add a difference."""
    has_deblocking: bool
    """Whether slices contain parameters of the deblocking filter."""


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
    has_separate_planes, has_chroma = False, True
    if profile in WITH_CHROMA_FORMAT:
        chroma_format = bits.read_ue()
        has_separate_planes = chroma_format == 3 and bool(bits.read(1))
        has_chroma = chroma_format > 0 and not has_separate_planes
        bits.read_ue(), bits.read_ue(), bits.read(1)  # bit depths, qpprime_y_zero_transform_bypass_flag
        if bits.read(1):
            for number in range(12 if chroma_format == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    frame_num_bits = bits.read_ue() + 4
    order_type, order_bits = bits.read_ue(), 0
    if order_type == 0:
        order_bits = bits.read_ue() + 4
    elif order_type == 1:
        bits.read(1), bits.read_se(), bits.read_se()
        for _ in range(bits.read_ue()):
            bits.read_se()
    max_references, may_have_gaps = bits.read_ue(), bool(bits.read(1))
    bits.read_ue(), bits.read_ue()  # width, height
    return SequenceParameters(
        frame_num_bits,
        has_separate_planes,
        bool(bits.read(1)),
        has_chroma,
        order_type,
        order_bits,
        max_references,
        may_have_gaps,
    )


def read_picture_parameters(unit: memoryview) -> tuple[int, PictureParameters]:
    """Parse a picture parameter set (section 7.3.2.2), and return it with its number.

    Raises:
        ValueError: if it is truncated, or has slice groups or the order of fields.
    """
    bits = Bits(unescaped(unit[1:SET_BYTES]))
    number = bits.read_ue()
    bits.read_ue()  # seq_parameter_set_id
    is_cabac = bool(bits.read(1))
    if bits.read(1) or bits.read_ue():
        raise ValueError("unsupported picture parameter set: it has slice groups or the order of fields")
    active = bits.read_ue() + 1, bits.read_ue() + 1
    has_weights, bipred = bool(bits.read(1)), bits.read(2)
    quantizer = 26 + bits.read_se()
    bits.read_se(), bits.read_se()  # pic_init_qs_minus26, chroma_qp_index_offset
    has_deblocking, _, has_redundant_pictures = bool(bits.read(1)), bits.read(1), bool(bits.read(1))
    return number, PictureParameters(
        active, has_weights, bipred == 1, has_redundant_pictures, is_cabac, quantizer, has_deblocking
    )


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


def is_reference(unit: memoryview) -> bool:
    """Whether a slice is that of a reference picture."""
    return unit[0] >> 5 & 3 > 0


def _skip_scaling_list(bits: Bits, size: int) -> None:
    """Skip a scaling list (section 7.3.2.1.1.1)."""
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.read_se()) % 256
        last = following or last
