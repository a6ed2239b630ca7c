"""The fields of an interlaced frame: two pictures of different moments, of which one is shown."""

from __future__ import annotations

from fractions import Fraction

import av
from av import VideoFrame
from av.video.stream import VideoStream

INTERLACED = frozenset({2, 3, 4, 5})
"""FFmpeg's AVFieldOrder of pictures made of two fields; 0 is unknown, 1 progressive."""
FLAGGING = frozenset(
    {"dnxhd", "dvvideo", "ffv1", "h264", "hevc", "mpeg2video", "mpeg4", "prores", "rawvideo", "vc1", "wmv3"}
)
"""Codecs, by FFmpeg's names, whose decoders tell of each frame whether it is interlaced, as containers may not."""


def is_interlaced(stream: VideoStream) -> bool:
    """Whether all of a stream's frames are interlaced: by the container, as its codec does not tell."""
    context = stream.codec_context
    return context.field_order in INTERLACED and context.codec.canonical_name not in FLAGGING


def first_field(frame: VideoFrame) -> VideoFrame:
    """The earlier field of an interlaced frame, by the frame's own flags: a picture of half the height.

    Filters that keep the full height weigh a frame against its neighbours, which the decode plan leaves out. One field
    of 1080 lines still has more lines than a model is shown.

    Args:
        frame: of an even height.
    """
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    graph.link_nodes(source, graph.add("separatefields"), graph.add("buffersink")).configure()
    source.push(frame)
    source.push(None)
    return graph.vpull()
