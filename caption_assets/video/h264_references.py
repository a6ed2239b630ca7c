"""Parser of H.264 slice headers that determine the reference pictures of frames.

Sections and names are those of ITU-T H.264 (08/2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from caption_assets.video import cabac
from caption_assets.video.bits import Bits
from caption_assets.video.h264 import IDR, PictureParameters, SequenceParameters, is_reference
from caption_assets.video.nal_units import escaped, unescaped

P_SLICE, B_SLICE, I_SLICE = 0, 1, 2
"""Types of slices, modulo 5 (table 7-6)."""
REFERENCE_BYTES = 128
"""Bytes of a slice that contain its header, with ordinary prediction weights."""


@dataclass(frozen=True, slots=True)
class SliceReferences:
    """The fields of a frame's slice header that determine its reference lists and change the decoded picture buffer."""

    first_macroblock: int
    kind: int
    """``P_SLICE``, ``B_SLICE`` or ``I_SLICE``."""
    frame_num: int
    order_lsb: int
    """``pic_order_cnt_lsb``."""
    active: tuple[int, int]
    """Number of active entries of both reference lists; 0 for a list that the slice lacks."""
    changes: tuple[tuple[int, ...], tuple[int, ...]]
    """Modifications of both lists: the signed differences of picture numbers, in order."""
    removals: tuple[int, ...] | None
    """Differences of picture numbers of the pictures that are removed; None for the sliding window."""


class ReferenceParser:
    """Parses the slice headers of a stream of frames, without separate planes, gaps and long-term references.

    Args:
        sequence: the sequence parameter set, with an ``order_type`` of 0.
        pictures: the picture parameter sets, by number.
    """

    def __init__(self, sequence: SequenceParameters, pictures: Mapping[int, PictureParameters]) -> None:
        self._sequence = sequence
        self._pictures = pictures

    def read(self, unit: memoryview) -> SliceReferences:
        """Parse the header of a slice (section 7.3.3).

        Raises:
            ValueError: if it is truncated or longer than ``REFERENCE_BYTES``, or not as expected.
            KeyError: if its picture parameter set is missing.
        """
        return self._read(Bits(unescaped(unit[1:REFERENCE_BYTES])), unit)[0]

    def empty(self, unit: memoryview) -> bytes:
        """A B slice with the header of another one, and a single macroblock, which is skipped.

        In place of a picture, a decoder decodes it at no cost, and then has the same pictures in its buffer.

        Args:
            unit: the picture's first slice.

        Raises:
            ValueError: see ``read``.
            KeyError: see ``read``.
        """
        bits = Bits(unescaped(unit[1:REFERENCE_BYTES]))
        _, picture = self._read(bits, unit)
        table = bits.read_ue() if picture.is_cabac else 0
        quantizer = picture.quantizer + bits.read_se()
        if picture.has_deblocking and bits.read_ue() != 1:
            bits.read_se(), bits.read_se()
        coded = bits.before
        if picture.is_cabac:
            coded += "1" * (-len(coded) % 8) + cabac.skipped_macroblock(table, quantizer)
        else:
            coded += "0101"  # mb_skip_run, and the end of the unit
        coded += "0" * (-len(coded) % 8)
        return bytes(unit[:1]) + escaped(int(coded, 2).to_bytes(len(coded) // 8))

    def _read(self, bits: Bits, unit: memoryview) -> tuple[SliceReferences, PictureParameters]:
        is_idr = unit[0] & 31 == IDR
        first_macroblock = bits.read_ue()
        kind = bits.read_ue() % 5
        if kind not in (P_SLICE, B_SLICE, I_SLICE):
            raise ValueError("unsupported slice: it is a switching slice")
        picture = self._pictures[bits.read_ue()]
        frame_num = bits.read(self._sequence.frame_num_bits)
        if is_idr:
            bits.read_ue()  # idr_pic_id
        order_lsb = bits.read(self._sequence.order_bits)
        if picture.has_redundant_pictures and bits.read_ue():
            raise ValueError("unsupported slice: it is redundant")
        lists = {P_SLICE: 1, B_SLICE: 2, I_SLICE: 0}[kind]
        if kind == B_SLICE:
            bits.read(1)  # direct_spatial_mv_pred_flag
        active = picture.active
        if lists and bits.read(1):
            active = bits.read_ue() + 1, bits.read_ue() + 1 if lists == 2 else 0
        active = active[0] if lists else 0, active[1] if lists == 2 else 0
        changes = _list_changes(bits) if lists else (), _list_changes(bits) if lists == 2 else ()
        if (kind == P_SLICE and picture.has_weights) or (kind == B_SLICE and picture.has_bipred_weights):
            _skip_weights(bits, active, has_chroma=self._sequence.has_chroma)
        removals = _removals(bits, is_idr=is_idr) if is_reference(unit) else None
        return SliceReferences(first_macroblock, kind, frame_num, order_lsb, active, changes, removals), picture


def _list_changes(bits: Bits) -> tuple[int, ...]:
    """Parse the modification of a reference list (section 7.3.3.1)."""
    changes: list[int] = []
    if bits.read(1):
        while (kind := bits.read_ue()) != 3:
            if kind > 1:
                raise ValueError("unsupported slice: it refers to a long-term reference")
            difference = bits.read_ue() + 1
            changes.append(difference if kind else -difference)
    return tuple(changes)


def _skip_weights(bits: Bits, active: tuple[int, int], *, has_chroma: bool) -> None:
    """Skip the prediction weights (section 7.3.3.2)."""
    bits.read_ue()  # luma_log2_weight_denom
    if has_chroma:
        bits.read_ue()
    for _ in range(sum(active)):
        if bits.read(1):
            bits.read_se(), bits.read_se()
        if has_chroma and bits.read(1):
            for _ in range(4):
                bits.read_se()


def _removals(bits: Bits, *, is_idr: bool) -> tuple[int, ...] | None:
    """Parse the marking of reference pictures (section 7.3.3.3)."""
    if is_idr:
        bits.read(1)  # no_output_of_prior_pics_flag
        if bits.read(1):
            raise ValueError("unsupported slice: it is a long-term reference")
        return None
    if not bits.read(1):
        return None
    removals: list[int] = []
    while operation := bits.read_ue():
        if operation != 1:
            raise ValueError("unsupported slice: it marks long-term references")
        removals.append(-bits.read_ue() - 1)
    return tuple(removals)
