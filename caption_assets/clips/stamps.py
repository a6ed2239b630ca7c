"""When a clip's frames are shown, by its packets: the numbering of frames that manifest and decoder share."""

from __future__ import annotations

from collections.abc import Iterable

from av import Packet
from av.video.stream import VideoStream


def shown_stamps(packets: Iterable[Packet[VideoStream]]) -> list[int]:
    """The presentation stamps of a clip's frames in the stream's time base, ascending.

    Frames to be shown before the first key frame are not the clip's: they are predicted from frames that it does not
    hold, as in a transport stream that was cut without regard for its groups. Where no frame is marked as a key frame,
    as with gradual refresh, all are.

    Args:
        packets: in file order.
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
