"""Clip bytes to the frames a model is shown: chosen by time, upright, at the model's size."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from av import Packet, VideoFrame
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.stream import VideoStream
from numpy.typing import NDArray

from caption_assets.clips import av1, parameter_sets
from caption_assets.clips.container import BROKEN, UnreadableClip, decoder, detail, open_video, read_track
from caption_assets.clips.picture import Picture, Renderer
from caption_assets.clips.plan import SKIPPABLE, PacketFacts, Plan, Step, lean_plan, whole_plan
from caption_assets.clips.sampling import frame_times
from caption_assets.clips.stamps import shown_stamps, stamped


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one window as a model will see them."""

    pixels: NDArray[np.uint8]
    """uint8 of shape (frames, height, width, 3), RGB."""
    indices: tuple[int, ...]
    """Numbers of the frames within the clip, in order of presentation."""
    fps: float
    """Frames per second of the chosen frames, not of the source: it sets the model's temporal positions."""
    interlaced: bool = False
    """Whether any of them is one field of two, of different moments."""
    padded: int = 0
    """Number of frames that have another shape than the clip, with black bars beside them."""


def decode(data: bytes, start: int, end: int, count: int, size: tuple[int, int] | None) -> Frames:
    """Decode ``count`` frames of the window from frame ``start`` to before frame ``end``.

    Pictures are those that a player shows: see ``picture``.

    Args:
        data: the whole clip.
        start: first frame of the window, in order of presentation.
        end: one past its last frame.
        count: frames wanted, at least 2, spread evenly over the window's time, its first and last frame included.
        size: height and width of the upright pictures, in pixels; None for those at which the clip is displayed.

    Raises:
        UnreadableClip: if the clip, or one of the wanted frames, cannot be decoded.
    """
    with open_video(data) as (container, stream):
        packets = list(stamped(stream, container.demux(stream)))
        stamps = shown_stamps(packets)
        if len(stamps) < end:
            raise UnreadableClip("damaged", f"the clip has {len(stamps)} frames, its window ends at frame {end}")
        base = float(stream.time_base or 0)
        shown = shown_at([(stamp - stamps[0]) * base for stamp in stamps[start:end]], count)
        indices = tuple(start + index for index in shown)
        chosen = [stamps[index] for index in indices]
        shots, errors = _shoot(stream, packets, set(chosen), Renderer(stream, read_track(data, stream), size))
    if missing := sorted({index for index, stamp in zip(indices, chosen, strict=True) if stamp not in shots}):
        reason = f" ({errors[0]})" if errors else ""
        raise UnreadableClip("damaged", f"frames {missing} of the clip cannot be decoded: the file is damaged{reason}")
    seconds = (chosen[-1] - chosen[0]) * base
    return Frames(
        pixels=np.stack([shots[stamp].picture.pixels for stamp in chosen]),
        indices=indices,
        fps=(count - 1) / seconds if seconds > 0 else 1.0,
        interlaced=any(shot.interlaced for shot in shots.values()),
        padded=sum(shots[stamp].picture.padded for stamp in chosen),
    )


def shown_at(times: Sequence[float], count: int) -> tuple[int, ...]:
    """Indices of the frames on show at ``count`` evenly spaced moments from the first frame to the last.

    Args:
        times: when each frame is shown, in seconds, ascending.
        count: moments, at least 2.
    """
    slack = 1e-6  # seconds; moments fall on frame times, and rounding must not show the frame before
    moments = frame_times(times[0], times[-1], count)
    return tuple(bisect_right(times, moment + slack) - 1 for moment in moments)


@dataclass(frozen=True, slots=True)
class _Shot:
    """A wanted frame, decoded."""

    picture: Picture
    interlaced: bool


def _stamp(packet: Packet[VideoStream]) -> int | None:
    """When the packet's frame is shown, in the stream's time base; None if it is not shown."""
    return None if packet.is_discard else packet.pts


def _shoot(
    stream: VideoStream, packets: Sequence[Packet[VideoStream]], wanted: set[int], renderer: Renderer
) -> tuple[dict[int, _Shot], list[str]]:
    """The wanted frames by stamp, as far as they can be decoded, and what went wrong."""
    codec = stream.codec_context.codec.canonical_name
    referred = av1.referred(map(memoryview, packets)) if codec == "av1" else repeat(True)
    facts = [
        PacketFacts(_stamp(packet), packet.is_keyframe, is_referred)
        for packet, is_referred in zip(packets, referred, strict=False)
    ]
    if codec in SKIPPABLE and parameter_sets.are_at_hand(stream, packets):
        shots, errors = _follow(lean_plan(facts, wanted), stream, packets, wanted, renderer)
        if len(shots) == len(wanted):
            return shots, errors
        # A file may be wrong about its key frames, or have none (gradual refresh): only the whole of it tells.
    return _follow(whole_plan(facts, wanted), stream, packets, wanted, renderer)


def _follow(
    plan: Plan,
    stream: VideoStream,
    packets: Sequence[Packet[VideoStream]],
    wanted: set[int],
    renderer: Renderer,
) -> tuple[dict[int, _Shot], list[str]]:
    """What ``_shoot`` does, by one plan; nothing, where the plan enters at a frame that is no key frame after all."""
    shots: dict[int, _Shot] = {}
    errors: list[str] = []
    entered = set()
    for frame in _frames(decoder(stream), packets, plan.steps, errors):
        if frame.key_frame and frame.pict_type == PictureType.I:
            entered.add(frame.pts)
        if frame.pts in wanted and not frame.is_corrupt:
            shots[frame.pts] = _Shot(renderer.render(frame), frame.interlaced_frame)
    return (shots, errors) if entered >= plan.entries else ({}, errors)


def _frames(
    context: VideoCodecContext, packets: Sequence[Packet[VideoStream]], steps: Sequence[Step], errors: list[str]
) -> Iterator[VideoFrame]:
    """What a codec makes of the packets, in order of presentation. Those that it refuses leave a line in ``errors``."""

    def frames_of(packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        try:
            return context.decode(packet)
        except BROKEN as error:
            errors.append(detail(error))
            return []

    def remaining() -> list[VideoFrame]:
        frames = frames_of(None)
        context.flush_buffers()  # else it would take the stream for ended
        return frames

    context.flush_buffers()
    gap = False
    for packet, step in zip(packets, steps, strict=True):
        if step is Step.DROP:
            gap = True
            continue
        if gap:
            yield from remaining()
            gap = False
        if step is Step.SKIP:
            continue
        context.skip_frame = "DEFAULT" if step is Step.DECODE else "NONREF"
        yield from frames_of(packet)
    yield from remaining()
