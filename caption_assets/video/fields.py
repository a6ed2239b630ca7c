"""The fields of an interlaced frame: two pictures captured at different times. One of them is shown."""

from __future__ import annotations

from fractions import Fraction

import av
from av import VideoFrame
from av.video.stream import VideoStream

INTERLACED = frozenset({2, 3, 4, 5})
"""Values of FFmpeg's AVFieldOrder for interlaced video; 0 is unknown, 1 progressive."""
CODECS_WITH_FIELD_FLAGS = frozenset(
    {"dnxhd", "dvvideo", "ffv1", "h264", "hevc", "mpeg2video", "mpeg4", "prores", "rawvideo", "vc1", "wmv3"}
)
"""Codecs, by FFmpeg's names, whose decoders flag each interlaced frame. Containers are not reliable for them."""


def is_interlaced(stream: VideoStream) -> bool:
    """Whether the container states that all frames of a stream are interlaced and its codec has no flag per frame."""
    context = stream.codec_context
    return context.field_order in INTERLACED and context.codec.canonical_name not in CODECS_WITH_FIELD_FLAGS


def first_field(frame: VideoFrame) -> VideoFrame:
    """The earlier field of an interlaced frame, according to the frame's flags: a picture of half the height.

    Filters that keep the full height compare a frame with its neighbors, which the decode plan skips. One field of a
    frame of 1080 lines still has more lines than the model's input.

    Args:
        frame: a frame of even height.
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
