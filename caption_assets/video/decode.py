"""Clip bytes to the frames a model is shown: chosen by time, upright, at the model's size."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import BinaryIO, cast

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from caption_assets.errors import UnreadableClip
from caption_assets.video.container import reports_damage
from caption_assets.video.frame_sampling import moments, shown_at
from caption_assets.video.picture import Picture
from caption_assets.video.picture_stream import PictureStream
from caption_assets.video.plan import SKIPPABLE, Structure, runs, with_parts

MAX_REPLACED = 0.25
"""Share of a window's moments that may show an earlier picture because their own cannot be decoded."""
SEQUENTIAL_PICTURES = 512
"""Pictures to a keyframe from which on a clip is sequential: twice the default window."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one window as a model will see them."""

    pixels: NDArray[np.uint8]
    """uint8 of shape (frames, height, width, 3), RGB."""
    indices: tuple[int, ...]
    """Numbers of the frames within the clip, in order of presentation. A frame that stays is there more than once."""
    fps: float
    """Frames per second of the chosen frames, not of the source: it sets the model's temporal positions."""
    interlaced: bool = False
    """Whether any of them is one field of two, of different moments."""
    padded: int = 0
    """Number of frames that have another shape than the clip, with black bars beside them."""
    replaced: int = 0
    """Number of frames whose own picture cannot be decoded, so that an earlier one is shown."""


class CatchingUp(Exception):
    """The time was over before the decoder reached the window. The next call goes on from there."""


def decode(data: bytes, start: int, end: int, count: int, size: tuple[int, int] | None) -> Frames:
    """Decode one window of a clip, as ``ClipDecoder.frames`` does.

    Args:
        data: the whole clip.
        start: as there.
        end: as there.
        count: as there.
        size: as there.

    Raises:
        UnreadableClip: as there.
    """
    with closing(ClipDecoder(partial(BytesIO, data))) as decoder:
        return decoder.frames(start, end, count, size)


@dataclass(frozen=True, slots=True)
class _Shot:
    """A picture to show."""

    rank: int
    """Number of its frame within the clip."""
    picture: Picture
    interlaced: bool


class ClipDecoder:
    """A clip that is being decoded. Windows that are asked for in order cost one pass over it together.

    Args:
        open_file: opens the clip's file; each call returns a file of its own.

    Raises:
        UnreadableClip: if there is no video in it.
    """

    def __init__(self, open_file: Callable[[], BinaryIO]) -> None:
        self._open_file = open_file
        with reports_damage(), ExitStack() as stack:
            stream = PictureStream(open_file, is_thorough=False)
            stack.callback(stream.close)
            self._timeline, packets = stream.read_all()
            stack.pop_all()
        self._can_skip = stream.codec in SKIPPABLE and packets.can_start_at_any_keyframe
        stream.is_thorough = not self._can_skip
        self._lean = stream if self._can_skip else None
        self._thorough = None if self._can_skip else stream
        keys = packets.keys if self._can_skip else ()
        self._structure = Structure(len(packets), keys, self._timeline.stamps, packets.holds)
        self._ranks = array("q", [-1]) * len(packets)
        for rank, number in enumerate(self._timeline.sources):
            if self._ranks[number] < 0:  # else it repeats the frame before
                self._ranks[number] = rank

    def close(self) -> None:
        """Close the clip's files."""
        for stream in (self._lean, self._thorough):
            if stream:
                stream.close()
        self._lean = self._thorough = None

    @property
    def position(self) -> int:
        """Number of packets that were read for the last window."""
        return max(stream.position if stream else 0 for stream in (self._lean, self._thorough))

    @property
    def is_sequential(self) -> bool:
        """Whether a window costs much less after the one before it, for want of keyframes."""
        return self._structure.packets > SEQUENTIAL_PICTURES * max(len(self._structure.keys), 1)

    def frames(
        self, start: int, end: int, count: int, size: tuple[int, int] | None, *, pause_at: float | None = None
    ) -> Frames:
        """Decode ``count`` frames of the window from frame ``start`` to before frame ``end``.

        Pictures are those that a player shows: see ``picture``.

        Args:
            start: first frame of the window, in order of presentation.
            end: one past its last frame.
            count: frames wanted, at least 2, spread evenly over the window's time, its first and last frame included.
            size: height and width of the upright pictures, in pixels; None for those at which the clip is displayed.
            pause_at: value of ``time.monotonic`` at which to stop if the decoder has not reached the window yet.

        Raises:
            UnreadableClip: if the clip, or more than ``MAX_REPLACED`` of the wanted frames, cannot be decoded.
            CatchingUp: if ``pause_at`` was reached.
        """
        times = self._timeline.times
        if len(times) < end:
            raise UnreadableClip("damaged", f"the clip has {len(times)} frames, its window ends at frame {end}")
        window = times[start:end]
        chosen = moments(window, times[end] if end < len(times) else self._timeline.end, count)
        ranks = [start + index for index in shown_at(window, chosen)]
        own = [self._ranks[self._timeline.sources[rank]] for rank in ranks]
        with reports_damage():
            shots = self._shots(sorted(set(own)), size, pause_at)
        undecodable = sum(rank not in shots or shots[rank].rank != rank for rank in own)
        if not shots or undecodable > MAX_REPLACED * count:
            raise self._damaged(undecodable, count)
        seconds = chosen[-1] - chosen[0]
        return Frames(
            pixels=np.stack([shots[rank].picture.pixels for rank in own]),
            indices=tuple(
                rank if shots[source].rank == source else shots[source].rank
                for rank, source in zip(ranks, own, strict=True)
            ),
            fps=(count - 1) / seconds if seconds > 0 else 1.0,
            interlaced=any(shot.interlaced for shot in shots.values()),
            padded=sum(shots[rank].picture.padded for rank in own),
            replaced=undecodable,
        )

    def _damaged(self, undecodable: int, count: int) -> UnreadableClip:
        error = self._thorough and self._thorough.error
        return UnreadableClip(
            "damaged",
            f"{undecodable} of the {count} frames of the window cannot be decoded, above the limit of "
            f"{MAX_REPLACED:.0%}: the file is damaged{f' ({error})' if error else ''}",
        )

    def _shots(self, wanted: Sequence[int], size: tuple[int, int] | None, pause_at: float | None) -> dict[int, _Shot]:
        """What is shown in place of each wanted frame; nothing if no picture at all can be decoded."""
        packets = with_parts(self._structure, {self._timeline.sources[rank] for rank in wanted})
        while self._can_skip:
            if self._lean is None or self._lean.last_rank >= wanted[0]:
                self._lean = self._fresh(self._lean, is_thorough=False)
            is_fresh = self._lean.position == 0
            shots = self._lean_shots(self._lean, wanted, packets, size, pause_at)
            if self._lean.entries:  # the container is wrong about its keyframes
                self._can_skip, self._structure = False, replace(self._structure, keys=())
            elif len(shots) == len(wanted):
                return shots
            elif is_fresh:
                break
            else:  # the pass may have left out what this window wants
                self._lean = self._fresh(self._lean, is_thorough=False)
        # A file may have no keyframes (gradual refresh), or damage: only all of it tells.
        if self._thorough is None or self._thorough.last_rank >= wanted[0]:
            self._thorough = self._fresh(self._thorough, is_thorough=True)
        return self._thorough_shots(self._thorough, wanted, packets, size, pause_at)

    def _lean_shots(
        self,
        stream: PictureStream,
        wanted: Sequence[int],
        packets: set[int],
        size: tuple[int, int] | None,
        pause_at: float | None,
    ) -> dict[int, _Shot]:
        """The wanted frames that come out where as little as possible is decoded."""
        renderer = stream.renderer(size)
        shots: dict[int, _Shot] = {}
        missing = set(wanted)
        for rank, frame in self._ranked(stream, runs(self._structure, packets), packets):
            if rank > wanted[-1]:
                stream.put_back(frame)
                break
            stream.last_rank = rank
            if rank in missing and not frame.is_corrupt:
                shots[rank] = _Shot(rank, renderer.render(frame), frame.interlaced_frame)
                missing.remove(rank)
            if rank == wanted[-1]:
                break
            _check_time(shots, pause_at)
        return shots

    def _thorough_shots(
        self,
        stream: PictureStream,
        wanted: Sequence[int],
        packets: set[int],
        size: tuple[int, int] | None,
        pause_at: float | None,
    ) -> dict[int, _Shot]:
        """The wanted frames; in place of one that cannot be decoded the latest before it, or else the first after."""
        renderer = stream.renderer(size)
        shots: dict[int, _Shot] = {}
        missing = deque(wanted)

        def show(rank: int, frame: VideoFrame) -> None:
            shots[missing.popleft()] = _Shot(rank, renderer.render(frame), frame.interlaced_frame)

        for rank, frame in self._ranked(stream, [range(max(packets) + 1)], packets):
            if frame.is_corrupt:
                continue
            while missing and missing[0] < rank:
                show(*(stream.latest or (rank, frame)))
            if not missing:
                stream.put_back(frame)
                break
            stream.last_rank, stream.latest = rank, (rank, frame)
            if missing[0] == rank:
                show(rank, frame)
            if not missing:
                break
            _check_time(shots, pause_at)
        while missing and stream.latest:
            show(*stream.latest)
        return shots

    def _ranked(
        self, stream: PictureStream, plan: Sequence[range], packets: set[int]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """The pictures of the timeline as they are decoded, each with the number of its frame."""
        for frame in stream.pictures(plan, packets):
            if (rank := self._ranks[cast(int, frame.pts)]) >= 0:
                yield rank, frame

    def _fresh(self, stream: PictureStream | None, *, is_thorough: bool) -> PictureStream:
        """A new pass in place of another."""
        if stream:
            stream.close()
        return PictureStream(self._open_file, is_thorough=is_thorough)


def _check_time(shots: dict[int, _Shot], pause_at: float | None) -> None:
    if pause_at is not None and not shots and time.monotonic() > pause_at:
        raise CatchingUp
