"""Which packets of an AV1 stream no other frame is predicted from: its decoder cannot be told to skip them.

Sections and names are those of the AV1 Bitstream & Decoding Process Specification, version 1.0.0 with errata 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from caption_assets.video.bits import Bits

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6
"""Types of an OBU (section 6.2.2)."""
KEY_FRAME, INTER_FRAME = 0, 1
"""Types of a frame that is predicted from no other, and of one that is (section 6.8.2)."""
SELECT = 2
"""Of a tool that the sequence leaves for each frame to turn on (section 3)."""
HEADER_BYTES = 64
"""More than the fields that are read here can take; the rest of an OBU is left alone."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """What has to be known of a sequence to find one field in its frames' headers."""

    order_hint_bits: int
    screen_content_tools: int
    """0, 1 or ``SELECT``."""
    integer_mv: int
    """0, 1 or ``SELECT``."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A temporal unit."""

    is_shown: bool
    """Whether it has a frame that is shown."""
    is_key: bool
    """Whether it begins with a keyframe, which decoding can begin at."""


def read_unit(packet: memoryview) -> Unit:
    """Parse the beginning of each frame's header in a packet (section 5.9.2).

    Raises:
        ValueError: if it is cut off.
    """
    is_still = is_shown = False
    is_key: bool | None = None
    for kind, payload in _units(packet):
        if kind == SEQUENCE_HEADER:
            is_still = bool(payload[0] >> 3 & 1)  # reduced_still_picture_header
        elif kind in (FRAME_HEADER, FRAME) and len(payload):
            first = payload[0]
            is_shown = is_shown or is_still or bool(first >> 7 or first >> 4 & 1)  # show_existing_frame, show_frame
            if is_key is None:
                is_key = is_still or first >> 5 == KEY_FRAME
    return Unit(is_shown, bool(is_key))


class ReferenceReader:
    """Reads from the packets of a stream, one after the other, whether other frames are predicted from them."""

    def __init__(self) -> None:
        self._sequence: Sequence | None = None

    def is_referred(self, packet: memoryview) -> bool:
        """Whether other frames may be predicted from this packet's; True as well where the packet does not say.

        Args:
            packet: the next temporal unit in decoding order.
        """
        try:
            units = [(kind, bytes(payload[:HEADER_BYTES])) for kind, payload in _units(packet)]
            for payload in (payload for kind, payload in units if kind == SEQUENCE_HEADER):
                self._sequence = _sequence(Bits(payload))
            frames = [payload for kind, payload in units if kind in (FRAME_HEADER, FRAME)]
            sequence = self._sequence
            return not frames or sequence is None or any(_is_referred(Bits(frame), sequence) for frame in frames)
        except ValueError:
            return True


def _units(packet: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and payload of each OBU (section 5.3)."""
    at = 0
    while at < len(packet):
        head = packet[at]
        kind, has_extension, has_size = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        at += 1 + has_extension
        size = len(packet) - at
        if has_size:
            size, at = _leb128(packet, at)
        yield kind, packet[at : at + size]
        at += size


def _leb128(data: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends (section 4.10.5)."""
    value = 0
    for index, byte in enumerate(data[at : at + 8]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise ValueError("a size has no end")


def _sequence(bits: Bits) -> Sequence | None:
    """The sequence header (section 5.5); None for a sequence of which nothing is made out here."""
    bits.read(3 + 1)  # seq_profile, still_picture
    if bits.read(1) or bits.read(1):  # reduced_still_picture_header, timing_info_present_flag
        return None
    has_delays = bits.read(1)
    for _ in range(bits.read(5) + 1):  # operating points
        bits.read(12)
        if bits.read(5) > 7:  # seq_level_idx
            bits.read(1)
        if has_delays and bits.read(1):
            bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    bits.read(width_bits + height_bits)
    if bits.read(1):  # frame_id_numbers_present_flag
        return None
    bits.read(7)  # use_128x128_superblock to enable_dual_filter
    has_order_hint = bits.read(1)
    if has_order_hint:
        bits.read(2)
    tools = SELECT if bits.read(1) else bits.read(1)
    integer_mv = SELECT
    if tools:
        integer_mv = SELECT if bits.read(1) else bits.read(1)
    return Sequence(bits.read(3) + 1 if has_order_hint else 0, tools, integer_mv)


def _is_referred(bits: Bits, sequence: Sequence) -> bool:
    """By a frame's header (section 5.9.2): whether it replaces any of the frames that are kept for reference."""
    if bits.read(1) or bits.read(2) != INTER_FRAME:  # show_existing_frame, frame_type
        return True
    if not bits.read(1):  # show_frame
        bits.read(1)
    is_error_resilient = bits.read(1)
    bits.read(1)  # disable_cdf_update
    tools = bits.read(1) if sequence.screen_content_tools == SELECT else sequence.screen_content_tools
    if tools and sequence.integer_mv == SELECT:
        bits.read(1)
    bits.read(1 + sequence.order_hint_bits)  # frame_size_override_flag, order_hint
    if not is_error_resilient:
        bits.read(3)  # primary_ref_frame
    return bits.read(8) != 0  # refresh_frame_flags
