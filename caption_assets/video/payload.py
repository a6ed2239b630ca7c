"""The content of a coded packet: a picture, a repeat of the one before, or no picture.

Many files do not have one picture per packet. VP8 and VP9 have hidden frames, H.264 has pictures in two fields that may
lie in two packets, some cameras write packets of metadata (SEI) alone, and Theora and AVI repeat a picture by an empty
packet. In most codecs the first bytes of a packet show its content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from av.video.stream import VideoStream

from caption_assets.video import h264
from caption_assets.video.nal_units import length_size, unit_type, units

PARSED_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video"})
"""Codecs, by FFmpeg's names, with packets without a picture. Each packet of AV1, a temporal unit, contains one."""
SKIPPING_CODECS = frozenset(
    {"wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "flv1", "rv30", "rv40", "theora"}
)
"""Codecs that do not code a picture without changes. Only decoding a packet shows whether it contains one."""
NOT_CODED_BYTES = 16
"""Maximum size of a packet without a coded picture in these codecs and MPEG-4, in bytes: its flag takes a few bits."""
VOP_START_CODE = b"\0\0\1\xb6"
"""The start code of an MPEG-4 picture (ISO/IEC 14496-2, 6.2.1)."""
PICTURE_START_CODE, EXTENSION_START_CODE = b"\0\0\1\0", b"\0\0\1\xb5"
"""Start codes of MPEG-1 and MPEG-2 (ISO/IEC 13818-2, table 6-1)."""
CODING_EXTENSION, FRAME_STRUCTURE = 8, 3
"""Extension of an MPEG-2 picture that distinguishes fields from frames, and its value for frames (table 6-14)."""
MPEG_I, MPEG_B = 1, 3
"""``picture_coding_type`` of MPEG-1 and MPEG-2 (ISO/IEC 13818-2, table 6-12)."""
MPEG4_I, MPEG4_B = 0, 2
"""``vop_coding_type`` of MPEG-4 (ISO/IEC 14496-2, table 6-20)."""
HEVC_SLICES, HEVC_IRAP_SLICES = range(32), range(16, 22)
"""Types of H.265 NAL units: all slices, and slices of intra random access point pictures (table 7-1)."""
VP9_KEY_FRAME = 0
"""``frame_type`` of a VP9 keyframe (section 7.2 of its specification)."""


class PacketContent(IntEnum):
    """The content of a packet."""

    PICTURE = 0
    REPEAT = 1
    """The picture before it is repeated."""
    NO_PICTURE = 2
    """Metadata, a hidden frame, or the second field of a picture."""
    UNKNOWN = 3
    """Only decoding the packet shows its content."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The parsed payload of a packet."""

    content: PacketContent
    can_be_keyframe: bool = True
    """False if the picture is predicted from others, even if the container flags it as a keyframe."""


PICTURE_PAYLOAD = Payload(PacketContent.PICTURE)
REPEAT_PAYLOAD = Payload(PacketContent.REPEAT, can_be_keyframe=False)
UNKNOWN_PAYLOAD = Payload(PacketContent.UNKNOWN)
NO_PICTURE_PAYLOAD = Payload(PacketContent.NO_PICTURE, can_be_keyframe=False)


class PayloadParser:
    """Parses the packets of one stream, in decoding order."""

    def __init__(self, stream: VideoStream) -> None:
        context = stream.codec_context
        codec = context.codec.canonical_name
        self._extradata = context.extradata or b""
        self._lengths = length_size(codec, self._extradata) if codec in ("h264", "hevc") else None
        self.has_b_pictures: bool | None = None
        """Whether a B picture was parsed; None for codecs in which picture types are not parsed."""
        self._sequence: h264.SequenceParameters | None = None
        self._first_field: h264.Slice | None = None
        if codec == "h264":
            self._read_extradata()
        readers: dict[str, Callable[[memoryview], Payload]] = {
            "h264": self._h264,
            "hevc": self._hevc,
            "vp8": _vp8,
            "vp9": _vp9,
            "mpeg4": self._mpeg4,
            "mpeg1video": self._mpeg,
            "mpeg2video": self._mpeg,
        }
        self._read = readers.get(codec, _skipping if codec in SKIPPING_CODECS else _other)

    @property
    def may_have_fields(self) -> bool:
        """False if the stream's header excludes H.264 pictures in two fields."""
        return self._sequence is None or not self._sequence.frames_only

    def read(self, data: memoryview) -> Payload:
        """Parse the next packet, which must not be empty."""
        try:
            return self._read(data)
        except (ValueError, IndexError):  # damaged
            return UNKNOWN_PAYLOAD

    def _read_extradata(self) -> None:
        """Parse the sequence parameters in the container's header (ISO/IEC 14496-15, 5.3.3.1)."""
        data = memoryview(self._extradata)
        try:
            if self._lengths is None:
                self._find_sequence(data, None)
            elif data[5] & 31:
                self._find_sequence(data[6:], 2)
        except (ValueError, IndexError):
            self._sequence = None

    def _find_sequence(self, data: memoryview, lengths: int | None) -> None:
        for unit in units(data, lengths):
            if unit_type("h264", unit) == h264.SEQUENCE_PARAMETERS:
                self._sequence = h264.read_sequence_parameters(unit)
                return

    def _h264(self, data: memoryview) -> Payload:
        parities = set()
        first: h264.Slice | None = None
        can_be_keyframe = False
        for unit in units(data, self._lengths):
            kind = unit_type("h264", unit)
            if kind == h264.SEQUENCE_PARAMETERS:
                self._sequence = h264.read_sequence_parameters(unit)
            if kind not in h264.SLICES:
                continue
            can_be_keyframe = can_be_keyframe or kind == h264.IDR or h264.is_intra(unit)
            if self._sequence is None or self._sequence.frames_only:
                return Payload(PacketContent.PICTURE, can_be_keyframe)
            part = h264.read_slice(unit, self._sequence)
            if part.parity is None:
                self._first_field = None
                return Payload(PacketContent.PICTURE, can_be_keyframe)
            first = first or part
            parities.add(part.parity)
        if first is None:
            return NO_PICTURE_PAYLOAD
        before, self._first_field = self._first_field, None
        if len(parities) == 2:
            return Payload(PacketContent.PICTURE, can_be_keyframe)
        if before and before.parity != first.parity and before.frame_num == first.frame_num:
            return NO_PICTURE_PAYLOAD
        self._first_field = first
        return Payload(PacketContent.PICTURE, can_be_keyframe)

    def _mpeg4(self, data: memoryview) -> Payload:
        whole = bytes(data)
        at = whole.find(VOP_START_CODE)
        if at < 0 or len(whole) - at <= NOT_CODED_BYTES or whole.find(VOP_START_CODE, at + len(VOP_START_CODE)) >= 0:
            return UNKNOWN_PAYLOAD  # not coded, or packed with another
        kind = whole[at + 4] >> 6
        self.has_b_pictures = self.has_b_pictures or kind == MPEG4_B
        return Payload(PacketContent.PICTURE, kind == MPEG4_I)

    def _mpeg(self, data: memoryview) -> Payload:
        whole = bytes(data)
        at = whole.find(PICTURE_START_CODE)
        if at < 0:
            return NO_PICTURE_PAYLOAD
        kind = whole[at + 5] >> 3 & 7
        self.has_b_pictures = self.has_b_pictures or kind == MPEG_B
        extension = whole.find(EXTENSION_START_CODE, at)
        is_field = (
            extension >= 0
            and whole[extension + 4] >> 4 == CODING_EXTENSION
            and whole[extension + 6] & 3 != FRAME_STRUCTURE
        )
        has_second = whole.find(PICTURE_START_CODE, at + len(PICTURE_START_CODE)) >= 0
        if is_field is not has_second:
            return UNKNOWN_PAYLOAD  # one field of a picture, or two pictures
        return Payload(PacketContent.PICTURE, kind == MPEG_I)

    def _hevc(self, data: memoryview) -> Payload:
        for unit in units(data, self._lengths):
            kind, layer = unit_type("hevc", unit), (unit[0] & 1) << 5 | unit[1] >> 3
            if kind in HEVC_SLICES and layer == 0:
                return Payload(PacketContent.PICTURE, kind in HEVC_IRAP_SLICES)
        return NO_PICTURE_PAYLOAD


def _vp8(data: memoryview) -> Payload:
    """The frame tag (RFC 6386, section 9.1)."""
    is_shown, is_key = data[0] >> 4 & 1, not data[0] & 1
    return Payload(PacketContent.PICTURE if is_shown else PacketContent.NO_PICTURE, is_key)


def _vp9(data: memoryview) -> Payload:
    """The frame's header, or those of a superframe (section 6.2 and annex B of the VP9 specification)."""
    is_shown, is_key = False, False
    for number, frame in enumerate(_vp9_frames(data)):
        shown, key = _vp9_header(frame)
        is_shown = is_shown or shown
        is_key = key if number == 0 else is_key
    return Payload(PacketContent.PICTURE if is_shown else PacketContent.NO_PICTURE, is_key)


def _vp9_frames(data: memoryview) -> list[memoryview]:
    last = data[-1]
    if last >> 5 != 0b110:
        return [data]
    count, size = (last & 7) + 1, (last >> 3 & 3) + 1
    index = len(data) - 2 - count * size
    if index < 0 or data[index] != last:
        return [data]
    frames, at = [], 0
    for number in range(count):
        place = index + 1 + number * size
        end = at + int.from_bytes(data[place : place + size], "little")
        if end > at:
            frames.append(data[at:end])
        at = end
    return frames


def _vp9_header(frame: memoryview) -> tuple[bool, bool]:
    """Whether a frame is shown, and whether it is a keyframe (section 6.2)."""
    bits = int.from_bytes(frame[:2].tobytes().ljust(2, b"\0"))
    profile_is_3 = bits >> 12 & 3 == 3
    rest = bits << (3 if profile_is_3 else 2) + 2 & 0xFFFF
    if rest >> 15:  # show_existing_frame
        return True, False
    return bool(rest >> 13 & 1), rest >> 14 & 1 == VP9_KEY_FRAME


def _skipping(data: memoryview) -> Payload:
    return UNKNOWN_PAYLOAD if len(data) <= NOT_CODED_BYTES else PICTURE_PAYLOAD


def _other(data: memoryview) -> Payload:
    return PICTURE_PAYLOAD
