"""The clip decoder: from a clip's bytes to the frames that the model is shown, upright and at the model's size."""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from caption_assets.errors import UnreadableClip
from caption_assets.video.container import translate_ffmpeg_errors
from caption_assets.video.decode_plan import SKIPPABLE_CODECS, StreamStructure, decode_ranges, with_second_fields
from caption_assets.video.frame_sampling import frames_shown_at, sample_times
from caption_assets.video.picture import Picture
from caption_assets.video.picture_stream import PictureStream

MAX_REPLACED = 0.25
"""Maximum share of a window's frames that may be replaced by another picture because they cannot be decoded."""
SEQUENTIAL_PICTURES = 512
"""Average pictures per keyframe above which a clip is sequential: twice the default window."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one window as the model is shown them."""

    pixels: NDArray[np.uint8]
    """uint8 of shape (frames, height, width, 3), RGB."""
    indices: tuple[int, ...]
    """Numbers of the frames within the clip, in presentation order. A still frame is repeated."""
    fps: float
    """Frames per second of these frames, not of the source: it sets the model's temporal positions."""
    padded: int = 0
    """Number of frames with another aspect ratio than the clip's, which are padded with black bars."""
    replaced: int = 0
    """Number of frames that cannot be decoded and are replaced by an earlier picture, or else by a later one."""


class PauseReached(Exception):
    """The time limit passed before the decoder reached the window. The next call continues the pass."""


@dataclass(frozen=True, slots=True)
class _DecodedFrame:
    """A decoded picture."""

    index: int
    """Number of its frame within the clip."""
    picture: Picture


class ClipDecoder:
    """Decodes windows of one clip. Windows that are requested in order take a single pass over the clip.

    The decoder first skips all pictures that are neither wanted nor needed to decode a wanted picture. If that does not
    yield every wanted picture, it decodes all pictures.

    Args:
        open_file: opens the clip's file; each call returns a file of its own.

    Raises:
        UnreadableClip: if there is no video in it.
    """

    def __init__(self, open_file: Callable[[], BinaryIO]) -> None:
        self._open_file = open_file
        with translate_ffmpeg_errors(), ExitStack() as stack:
            stream = PictureStream(open_file, decodes_all=False)
            stack.callback(stream.close)
            timeline, packets, references = stream.read_all()
            stack.pop_all()
        self.timeline = timeline
        """The clip's pictures in presentation order."""
        self.packets = packets
        """The clip's packets."""
        self._can_skip = stream.codec in SKIPPABLE_CODECS and packets.can_start_at_any_keyframe
        stream.decodes_all = not self._can_skip
        self._selective = stream if self._can_skip else None
        self._full = None if self._can_skip else stream
        self._played: PictureStream | None = None
        keyframes = packets.keyframes if self._can_skip else ()
        self._structure = StreamStructure(len(packets), keyframes, self.timeline.timestamps, packets.contents)
        if references and self._can_skip and not self.is_sequential:
            # In a sequential clip, a skipped picture that the next window needs would restart the pass.
            self._structure = replace(self._structure, references=references)
            stream.skip_references(references)
        self._index_of_packet = array("q", [-1]) * len(packets)
        for index, number in enumerate(self.timeline.sources):
            if self._index_of_packet[number] < 0:  # otherwise the frame repeats the one before
                self._index_of_packet[number] = index

    def close(self) -> None:
        """Close the clip's files."""
        for stream in (self._selective, self._full, self._played):
            if stream:
                stream.close()
        self._selective = self._full = self._played = None

    @property
    def position(self) -> int:
        """Number of packets read so far in the current pass."""
        return max(stream.position if stream else 0 for stream in (self._selective, self._full))

    @property
    def is_sequential(self) -> bool:
        """Whether keyframes are so sparse that a window is much cheaper to decode after the one before it."""
        return self._structure.packets > SEQUENTIAL_PICTURES * max(len(self._structure.keyframes), 1)

    def frames(
        self, start: int, end: int, count: int, size: tuple[int, int] | None, *, pause_at: float | None = None
    ) -> Frames:
        """Decode ``count`` frames of the window from frame ``start`` to before frame ``end``.

        Pictures are rendered as a player shows them: see ``picture``.

        Args:
            start: first frame of the window, in presentation order.
            end: one past its last frame.
            count: number of frames, at least 2, spread evenly over the window's time, including its first and last.
            size: height and width of the upright pictures, in pixels; None for the display size of the clip.
            pause_at: value of ``time.monotonic`` at which to stop if the decoder has not reached the window yet.

        Raises:
            UnreadableClip: if the clip, or more than ``MAX_REPLACED`` of the wanted frames, cannot be decoded.
            PauseReached: if ``pause_at`` was reached.
        """
        times = self.timeline.times
        if len(times) < end:
            raise UnreadableClip(
                "damaged",
                f"the clip has {len(times)} frames, but its window ends at frame {end}",
            )
        window = times[start:end]
        chosen = sample_times(window, times[end] if end < len(times) else self.timeline.end, count)
        indices = [start + index for index in frames_shown_at(window, chosen)]
        coded = [self._index_of_packet[self.timeline.sources[index]] for index in indices]
        with translate_ffmpeg_errors():
            decoded = self._decode_wanted(sorted(set(coded)), size, pause_at)
        undecodable = sum(index not in decoded or decoded[index].index != index for index in coded)
        if not decoded or undecodable > MAX_REPLACED * count:
            raise self._damaged(undecodable, count)
        seconds = chosen[-1] - chosen[0]
        return Frames(
            pixels=np.stack([decoded[index].picture.pixels for index in coded]),
            indices=tuple(
                index if decoded[source].index == source else decoded[source].index
                for index, source in zip(indices, coded, strict=True)
            ),
            fps=(count - 1) / seconds if seconds > 0 else 1.0,
            padded=sum(decoded[index].picture.padded for index in coded),
            replaced=undecodable,
        )

    def first_packet(self, indices: Collection[int]) -> int:
        """Number of the packet at which decoding of these frames begins."""
        wanted = {self.timeline.sources[index] for index in indices}
        return decode_ranges(self._structure, wanted)[0].start if self._can_skip else 0

    def pictures(self, indices: Sequence[int], size: tuple[int, int] | None) -> Iterator[Picture | None]:
        """Decode and render all of the given frames, one at a time.

        Calls with ascending frames take a single pass over the clip. Finish or close one before the next.

        Args:
            indices: numbers of the frames, ascending; a repeated number repeats the picture.
            size: see ``frames``.

        Yields:
            The picture of each frame. None for each other picture that is decoded on the way.

        Raises:
            UnreadableClip: if more than ``MAX_REPLACED`` of the frames cannot be decoded. Each is replaced as in
                ``frames``.
        """
        coded = [self._index_of_packet[self.timeline.sources[index]] for index in indices]
        wanted = sorted(set(coded))
        packets = with_second_fields(self._structure, {self.timeline.sources[index] for index in wanted})
        counts = Counter(coded)
        done = replaced = 0
        with translate_ffmpeg_errors():
            for attempt, replaces in enumerate((False, True) if self._can_skip else (True,)):
                if done == len(wanted):
                    return
                if attempt and self._played and self._played.unconfirmed_keyframes:
                    self._can_skip, self._structure = False, replace(self._structure, keyframes=(), references=None)
                if attempt or self._played is None or self._played.last_index >= wanted[done]:
                    self._played = self._reopen(self._played, decodes_all=True)
                plan = [range(max(packets) + 1)] if replaces else decode_ranges(self._structure, packets)
                for shown in self._play(self._played, plan, wanted[done:], packets, size, replaces=replaces):
                    if shown is None:
                        yield None
                        continue
                    replaced += counts[wanted[done]] * (shown.index != wanted[done])
                    if replaced > MAX_REPLACED * len(coded):
                        raise self._damaged(replaced, len(coded))
                    for _ in range(counts[wanted[done]]):
                        yield shown.picture
                    done += 1
        if done < len(wanted):
            raise self._damaged(len(wanted) - done, len(coded))

    def _play(
        self,
        stream: PictureStream,
        plan: Sequence[range],
        wanted: Sequence[int],
        packets: set[int],
        size: tuple[int, int] | None,
        *,
        replaces: bool,
    ) -> Iterator[_DecodedFrame | None]:
        """The wanted frames in order, and None for each other picture.

        Args:
            stream: decodes all pictures.
            plan: packets to decode.
            wanted: numbers of the frames, ascending.
            packets: their packets.
            size: see ``frames``.
            replaces: whether an undecodable frame is replaced, as in ``_decode_fully``; if not, it is the end.
        """
        renderer = stream.renderer(size)
        missing = deque(wanted)
        for index, frame in self._execute_plan(stream, plan, packets):
            if frame.is_corrupt:
                continue
            if not replaces and (index > missing[0] or (index == missing[0] and stream.unconfirmed_keyframes)):
                return  # the container's keyframe flags are wrong, or the file is damaged
            while missing and missing[0] < index:
                number, latest = stream.latest or (index, frame)
                missing.popleft()
                yield _DecodedFrame(number, renderer.render(latest))
            if not missing:
                stream.return_frame(frame)
                return
            stream.last_index, stream.latest = index, (index, frame)
            if index != missing[0]:
                yield None
                continue
            missing.popleft()
            yield _DecodedFrame(index, renderer.render(frame))
            if not missing:
                return
        while missing and replaces and stream.latest:
            missing.popleft()
            yield _DecodedFrame(stream.latest[0], renderer.render(stream.latest[1]))

    def _damaged(self, undecodable: int, count: int) -> UnreadableClip:
        error = self._full and self._full.error
        return UnreadableClip(
            "damaged",
            f"{undecodable} of the window's {count} frames cannot be decoded, above the limit of {MAX_REPLACED:.0%}: "
            f"the file is damaged{f' ({error})' if error else ''}",
        )

    def _decode_wanted(
        self, wanted: Sequence[int], size: tuple[int, int] | None, pause_at: float | None
    ) -> dict[int, _DecodedFrame]:
        """The picture to show for each wanted frame; none if no picture at all can be decoded."""
        packets = with_second_fields(self._structure, {self.timeline.sources[index] for index in wanted})
        while self._can_skip:
            if self._selective is None or self._selective.last_index >= wanted[0]:
                self._selective = self._reopen(self._selective, decodes_all=False)
            is_new_pass = self._selective.position == 0
            decoded = self._decode_selectively(self._selective, wanted, packets, size, pause_at)
            if self._structure.references and self._selective.error:  # the file may be damaged
                self._structure = replace(self._structure, references=None)
                self._selective = self._reopen(self._selective, decodes_all=False)
            elif self._selective.unconfirmed_keyframes:  # the container's keyframe flags are wrong
                self._can_skip, self._structure = False, replace(self._structure, keyframes=(), references=None)
            elif len(decoded) == len(wanted):
                return decoded
            elif is_new_pass:
                break
            else:  # this window may need pictures that earlier windows skipped
                self._selective = self._reopen(self._selective, decodes_all=False)
        # The file has no keyframes (gradual refresh) or is damaged: only decoding all of it shows which.
        if self._full is None or self._full.last_index >= wanted[0]:
            self._full = self._reopen(self._full, decodes_all=True)
        return self._decode_fully(self._full, wanted, packets, size, pause_at)

    def _decode_selectively(
        self,
        stream: PictureStream,
        wanted: Sequence[int],
        packets: set[int],
        size: tuple[int, int] | None,
        pause_at: float | None,
    ) -> dict[int, _DecodedFrame]:
        """The wanted frames that can be decoded from the planned ranges of packets."""
        renderer = stream.renderer(size)
        decoded: dict[int, _DecodedFrame] = {}
        missing = set(wanted)
        for index, frame in self._execute_plan(stream, decode_ranges(self._structure, packets), packets):
            if index > wanted[-1]:
                stream.return_frame(frame)
                break
            stream.last_index = index
            if index in missing and not frame.is_corrupt:
                decoded[index] = _DecodedFrame(index, renderer.render(frame))
                missing.remove(index)
            if index == wanted[-1]:
                break
            _check_pause(decoded, pause_at)
        return decoded

    def _decode_fully(
        self,
        stream: PictureStream,
        wanted: Sequence[int],
        packets: set[int],
        size: tuple[int, int] | None,
        pause_at: float | None,
    ) -> dict[int, _DecodedFrame]:
        """The wanted frames. An undecodable frame is replaced by the last one before it, or else the first after it."""
        renderer = stream.renderer(size)
        decoded: dict[int, _DecodedFrame] = {}
        missing = deque(wanted)

        def show(index: int, frame: VideoFrame) -> None:
            decoded[missing.popleft()] = _DecodedFrame(index, renderer.render(frame))

        for index, frame in self._execute_plan(stream, [range(max(packets) + 1)], packets):
            if frame.is_corrupt:
                continue
            while missing and missing[0] < index:
                show(*(stream.latest or (index, frame)))
            if not missing:
                stream.return_frame(frame)
                break
            stream.last_index, stream.latest = index, (index, frame)
            if missing[0] == index:
                show(index, frame)
            if not missing:
                break
            _check_pause(decoded, pause_at)
        while missing and stream.latest:
            show(*stream.latest)
        return decoded

    def _execute_plan(
        self, stream: PictureStream, plan: Sequence[range], packets: set[int]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Execute a decode plan: the timeline's pictures in presentation order, each with the number of its frame."""
        for frame in stream.pictures(plan, packets):
            if (index := self._index_of_packet[cast(int, frame.pts)]) >= 0:
                yield index, frame

    def _reopen(self, stream: PictureStream | None, *, decodes_all: bool) -> PictureStream:
        """Close a pass over the clip and begin another."""
        if stream:
            stream.close()
        references = None if decodes_all else self._structure.references
        return PictureStream(self._open_file, decodes_all=decodes_all, references=references)


def _check_pause(decoded: dict[int, _DecodedFrame], pause_at: float | None) -> None:
    if pause_at is not None and not decoded and time.monotonic() > pause_at:
        raise PauseReached
