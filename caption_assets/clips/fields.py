"""The fields of an interlaced frame: two pictures of different moments, of which one is shown."""

from __future__ import annotations

from fractions import Fraction

import av
from av import VideoFrame


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
