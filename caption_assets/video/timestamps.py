"""Timestamps of pictures, repaired where a file's own do not place each picture: pure functions of integers.

All are in ticks of the stream's time base.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

REORDERED = 16
"""Maximum number of pictures by which decoding and presentation order differ (H.264 and H.265, max_num_reorder)."""
PICTURES_TO_A_RECORDING = 50
"""Shorter recordings are not told from pictures out of order."""
STEPS = 0.4, 2.5
"""Range of a rebuilt interval, in nominal intervals. Outside it, pictures are missing or the rate is wrong."""


class NoTimestamps(ValueError):
    """Timestamps that cannot be rebuilt with certainty."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The limits within which a stream's clock runs on, in ticks."""

    step: int
    """Nominal interval between pictures, at least 1."""
    backward: int
    """A step back by more begins another recording."""
    forward: int
    """A step ahead by more, beyond a packet's own duration, begins another recording."""
    longest: int
    """So does a step ahead by more, whatever the packet's duration."""
    shortest: int
    """A shorter average interval between pictures is wrong."""


def recording_offsets(
    stamps: Sequence[int | None], clock: Sequence[int | None], durations: Sequence[int], limits: Clock, window: int
) -> list[int]:
    """What to add to each packet's timestamps, where recordings with clocks of their own follow each other in one file.

    A recording begins where the clock jumps, in either direction. It is moved to the end of the one before it.

    Args:
        stamps: presentation timestamps, in decoding order; None where missing.
        clock: timestamps by which jumps are found: those of decoding, or of presentation where those are not stored.
        durations: of each packet; 0 where unknown.
        limits: what a jump is.
        window: number of packets within which the clock is not in order: 1 for decoding timestamps.
    """
    offsets: list[int] = []
    end: int | None = None
    for start, stop in itertools.pairwise([0, *_jumps(clock, durations, limits, window), len(stamps)]):
        known = [stamp for stamp in stamps[start:stop] if stamp is not None]
        head = [stamp for stamp in stamps[start : min(start + REORDERED, stop)] if stamp is not None]
        offset = end - min(head) if head and end is not None else 0
        offsets += [offset] * (stop - start)
        if known:
            end = max(known) + offset + limits.step
    return offsets


def _jumps(clock: Sequence[int | None], durations: Sequence[int], limits: Clock, window: int) -> list[int]:
    """Numbers of the packets at which the clock begins anew."""
    found: list[int] = []
    recent: list[int] = []
    duration = 0
    for number, now in enumerate(clock):
        if now is None:
            continue
        if recent and (
            now < min(recent) - limits.backward
            or now > max(recent) + min(limits.forward + max(duration, limits.step), limits.longest)
        ):
            found.append(number)
            recent = []
        recent = [*recent[-window + 1 :], now] if window > 1 else [now]
        duration = durations[number]
    return found


def in_presentation_order(
    stamps: Sequence[int | None], decoding: Sequence[int | None], nominal: int | None
) -> list[int]:
    """Ascending timestamps for pictures in presentation order.

    - Presentation timestamps that ascend are kept.
    - If they do not, and those of decoding all differ, the pictures take these in ascending order. The first picture is
      then shown when it is decoded, and so all others keep their distance from it.
    - If most of those of decoding keep the nominal pace and none leaves it for long, so do the pictures.
    - If those of presentation step back in a few places alone, recordings overlap there: each goes on behind the one
      before. If they do in many places, but all differ, the pictures take them in ascending order.
    - Else missing and equal timestamps are spread evenly between their neighbours.

    Args:
        stamps: presentation timestamps of the file, one for each picture in presentation order.
        decoding: timestamps of decoding, one for each picture in decoding order.
        nominal: interval between pictures; None where the file states none.

    Raises:
        NoTimestamps: if the intervals that come out are not near the nominal one.
    """
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) == len(stamps) and all(before < after for before, after in itertools.pairwise(known)):
        return known
    if _differ(decoding):
        return sorted(stamp for stamp in decoding if stamp is not None)
    if nominal and (start := _paced(decoding, nominal)) is not None:
        return [start + nominal * index for index in range(len(stamps))]
    if nominal and len(known) == len(stamps) and (continued := _continued(known, nominal)):
        return continued
    if _differ(stamps):
        return sorted(known)
    anchors = _longest_ascent(stamps)
    if nominal is None or not anchors:
        raise NoTimestamps("timestamps are missing or equal, and the file states no frame rate")
    rebuilt: list[int] = [0] * len(stamps)
    for index in anchors:
        rebuilt[index] = stamps[index] or 0
    for before, after in itertools.pairwise(anchors):
        step = (rebuilt[after] - rebuilt[before]) / (after - before)
        if after - before > 1 and not STEPS[0] * nominal <= step <= STEPS[1] * nominal:
            raise NoTimestamps(
                f"{after - before - 1} pictures have no timestamp of their own in {after - before} intervals of "
                f"{step / nominal:.2f} times the nominal length"
            )
        for index in range(before + 1, after):
            rebuilt[index] = round(rebuilt[before] + step * (index - before))
    for index in range(anchors[0]):
        rebuilt[index] = rebuilt[anchors[0]] - nominal * (anchors[0] - index)
    for index in range(anchors[-1] + 1, len(stamps)):
        rebuilt[index] = rebuilt[anchors[-1]] + nominal * (index - anchors[-1])
    return rebuilt


def at_a_possible_rate(stamps: Sequence[int], nominal: int | None, limits: Clock) -> list[int]:
    """Ascending timestamps, or others at the nominal rate if these are closer together than pictures can be.

    Raises:
        NoTimestamps: if the file states no possible rate.
    """
    if len(stamps) < 2 or stamps[-1] - stamps[0] >= limits.shortest * (len(stamps) - 1):
        return list(stamps)
    if nominal is None or nominal < limits.shortest:
        raise NoTimestamps("timestamps are closer together than pictures can be, and the file states no frame rate")
    return [stamps[0] + nominal * index for index in range(len(stamps))]


def _differ(stamps: Sequence[int | None]) -> bool:
    """Whether there are timestamps for all pictures, and none twice."""
    return None not in stamps and len(set(stamps)) == len(stamps)


def _continued(stamps: Sequence[int], nominal: int) -> list[int]:
    """Timestamps that go on one interval later wherever these step back; none if they do so too often."""
    backward = sum(after <= before for before, after in itertools.pairwise(stamps))
    if backward > len(stamps) // PICTURES_TO_A_RECORDING:
        return []
    offset, continued = 0, [stamps[0]]
    for before, after in itertools.pairwise(stamps):
        if after <= before:
            offset += before + nominal - after
        continued.append(after + offset)
    return continued


def _paced(decoding: Sequence[int | None], nominal: int) -> int | None:
    """Where a constant pace begins that most timestamps of decoding keep; None if there is none.

    In a program stream with one timestamp for several pictures, FFmpeg gives it to the wrong one or makes others up.
    """
    early = [stamp - nominal * index for index, stamp in enumerate(decoding) if stamp is not None]
    if not early:
        return None
    start, times = Counter(early).most_common(1)[0]
    keeps = abs(early[0] - start) <= nominal and abs(early[-1] - start) <= nominal
    strays = max(abs(each - start) for each in early)
    return start if keeps and times * 2 >= len(early) and strays <= REORDERED * nominal else None


def _longest_ascent(stamps: Sequence[int | None]) -> list[int]:
    """Indices of the longest subsequence of ascending timestamps."""
    tails: list[int] = []
    ends: list[int] = []
    before: dict[int, int | None] = {}
    for index, stamp in enumerate(stamps):
        if stamp is None:
            continue
        length = bisect_left(tails, stamp)
        if length < len(tails) and tails[length] == stamp:
            continue  # the first of equals
        before[index] = ends[length - 1] if length else None
        tails[length : length + 1] = [stamp]
        ends[length : length + 1] = [index]
    found: list[int] = []
    index_or_none = ends[-1] if ends else None
    while index_or_none is not None:
        found.append(index_or_none)
        index_or_none = before[index_or_none]
    return found[::-1]
