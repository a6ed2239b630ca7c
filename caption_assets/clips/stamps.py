"""When a clip's frames are shown, by its packets: the numbering of frames that manifest and decoder share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from av import Packet
from av.video.stream import VideoStream

from caption_assets.clips.container import UnreadableClip

IN_STORED_ORDER = frozenset({"avi", "asf"})
"""Containers that tell when a frame is decoded; when it is shown, FFmpeg works out for older codecs alone."""
INTERLACED = frozenset({2, 3, 4, 5})
"""FFmpeg's AVFieldOrder of pictures made of two fields; 0 is unknown, 1 progressive."""


def stamped(stream: VideoStream, packets: Iterable[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """The packets of a stream, their presentation stamps changed where they do not tell the frames apart.

    - Where they begin anew, as in recordings put one behind the other, they go on from the latest instead. Frames
      before the key frame at which the second begins, which refer to some that are not there, have none from then on.
    - Where one is missing, as in a transport stream that has one for several frames, it is a frame's time after the one
      before. Not so in interlaced streams: there it is the second field of a frame, and has none.

    Args:
        stream: that the packets are of.
        packets: in file order.

    Raises:
        UnreadableClip: if stamps are missing in a stream whose frames are not stored in the order in which they are
            shown, or from the first frame on.
    """
    context = stream.codec_context
    progressive = context.field_order not in INTERLACED
    if (
        context.has_b_frames
        and context.codec.canonical_name in ("h264", "hevc")
        and stream.container.format.name in IN_STORED_ORDER
    ):
        raise _untold()
    offset, beginning, latest, following = 0, None, None, None
    for packet in packets:
        if packet.is_discard or not packet.size:
            yield packet
            continue
        if packet.pts is not None:
            packet.pts += offset
            if packet.is_keyframe and latest is not None and packet.pts < latest:
                beginning = latest + max(packet.duration or 0, 1)
                offset += beginning - packet.pts
                packet.pts = beginning
        elif progressive:
            if following is None or context.has_b_frames:
                raise _untold()
            packet.pts = following
        if packet.pts is not None:
            following = packet.pts + (packet.duration or 0)
            latest = packet.pts if latest is None else max(latest, packet.pts)
            if beginning is not None and packet.pts < beginning:
                packet.pts = None
        yield packet


def _untold() -> UnreadableClip:
    return UnreadableClip(
        "no_timestamps",
        "the container does not tell when each frame is shown: encode the video anew, into MP4 say",
    )


def shown_stamps(packets: Iterable[Packet[VideoStream]]) -> list[int]:
    """The presentation stamps of a clip's frames in the stream's time base, ascending.

    Frames to be shown before the first key frame are not the clip's: they are predicted from frames that it does not
    hold, as in a transport stream that was cut without regard for its groups. Where no frame is marked as a key frame,
    as with gradual refresh, all are.

    Args:
        packets: in file order, as ``stamped`` gives them.
    """
    stamps = []
    first_key = None
    for packet in packets:
        if packet.pts is None:
            continue
        if first_key is None and packet.is_keyframe:
            first_key = packet.pts
        if not packet.is_discard:
            stamps.append(packet.pts)
    return sorted(stamp for stamp in stamps if first_key is None or stamp >= first_key)
