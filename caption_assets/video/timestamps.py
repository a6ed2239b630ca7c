"""Repair of presentation timestamps that are missing, equal, out of order or discontinuous: pure functions of integers.

All timestamps are in ticks of the stream's time base. PTS are presentation timestamps, DTS decoding timestamps.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MAX_REORDERED = 16
"""Maximum number of pictures by which decoding and presentation order differ (H.264 and H.265, max_num_reorder)."""
MIN_RECORDING_PICTURES = 50
"""Minimum average number of pictures in overlapping recordings. More frequent steps back are pictures out of order."""
INTERVAL_RANGE = 0.4, 2.5
"""Accepted range of a repaired interval, in nominal intervals. Outside it pictures are missing or the rate is wrong."""


class UncertainTimestamps(ValueError):
    """Timestamps that cannot be repaired with certainty."""


@dataclass(frozen=True, slots=True)
class ClockLimits:
    """Limits on the steps of a stream's clock, in ticks. A step beyond them begins another recording."""

    step: int
    """Nominal interval between pictures, at least 1."""
    backward: int
    """Maximum step back."""
    forward: int
    """Maximum step ahead, beyond the packet's own duration."""
    longest: int
    """Maximum step ahead, whatever the packet's duration."""
    shortest: int
    """Minimum average interval between pictures. A shorter one is an error of the file."""


def recording_offsets(
    pts: Sequence[int | None], clock: Sequence[int | None], durations: Sequence[int], limits: ClockLimits, window: int
) -> list[int]:
    """The offset to add to each packet's timestamps so that concatenated recordings share one clock.

    A recording begins where the clock jumps, in either direction. It is moved to the end of the one before it.

    Args:
        pts: in decoding order; None where missing.
        clock: timestamps in which jumps are detected: DTS, or PTS where the file stores no DTS.
        durations: of each packet; 0 where unknown.
        limits: steps beyond these are jumps.
        window: number of packets within which the clock may be out of order: 1 for DTS.
    """
    offsets: list[int] = []
    end: int | None = None
    for start, stop in itertools.pairwise([0, *_discontinuities(clock, durations, limits, window), len(pts)]):
        known = [time for time in pts[start:stop] if time is not None]
        head = [time for time in pts[start : min(start + MAX_REORDERED, stop)] if time is not None]
        offset = end - min(head) if head and end is not None else 0
        offsets += [offset] * (stop - start)
        if known:
            end = max(known) + offset + limits.step
    return offsets


def _discontinuities(
    clock: Sequence[int | None], durations: Sequence[int], limits: ClockLimits, window: int
) -> list[int]:
    """Numbers of the packets at which the clock jumps."""
    known = [now for now in clock if now is not None]
    usual = min(limits.forward + limits.step, limits.longest)
    if all(0 <= after - before <= usual for before, after in itertools.pairwise(known)):  # most clips, kept fast
        return []
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


def repair_timestamps(pts: Sequence[int | None], dts: Sequence[int | None], nominal: int | None) -> list[int]:
    """Ascending timestamps for pictures in presentation order. The first rule that applies wins.

    - Ascending PTS are kept.
    - If all DTS differ, the pictures take them in ascending order. The first picture is then shown when it is decoded,
      so all others keep their distance from it.
    - If most DTS keep the nominal rate and none differs much from it, the pictures keep that rate.
    - If PTS step back in a few places only, recordings overlap there: each continues after the one before.
    - If all PTS differ, the pictures take them in ascending order.
    - Otherwise missing and equal PTS are interpolated between their neighbors.

    Args:
        pts: as stored, one for each picture, in presentation order.
        dts: as stored, one for each picture, in decoding order.
        nominal: interval between pictures; None where the file states none.

    Raises:
        UncertainTimestamps: if the resulting intervals are not near the nominal one.
    """
    known = [time for time in pts if time is not None]
    if len(known) == len(pts) and all(before < after for before, after in itertools.pairwise(known)):
        return known
    if _are_distinct(dts):
        return sorted(time for time in dts if time is not None)
    if nominal and (start := _constant_rate_start(dts, nominal)) is not None:
        return [start + nominal * index for index in range(len(pts))]
    if nominal and len(known) == len(pts) and (continued := _without_steps_back(known, nominal)):
        return continued
    if _are_distinct(pts):
        return sorted(known)
    anchors = _longest_ascending(pts)
    if nominal is None or not anchors:
        raise UncertainTimestamps("timestamps are missing or equal, and the file states no frame rate")
    repaired: list[int] = [0] * len(pts)
    for index in anchors:
        repaired[index] = pts[index] or 0
    for before, after in itertools.pairwise(anchors):
        step = (repaired[after] - repaired[before]) / (after - before)
        if after - before > 1 and not INTERVAL_RANGE[0] * nominal <= step <= INTERVAL_RANGE[1] * nominal:
            raise UncertainTimestamps(
                f"{after - before - 1} pictures have no timestamp of their own in {after - before} intervals of "
                f"{step / nominal:.2f} times the nominal length"
            )
        for index in range(before + 1, after):
            repaired[index] = round(repaired[before] + step * (index - before))
    for index in range(anchors[0]):
        repaired[index] = repaired[anchors[0]] - nominal * (anchors[0] - index)
    for index in range(anchors[-1] + 1, len(pts)):
        repaired[index] = repaired[anchors[-1]] + nominal * (index - anchors[-1])
    return repaired


def enforce_max_rate(pts: Sequence[int], nominal: int | None, limits: ClockLimits) -> list[int]:
    """The ascending timestamps, or others at the nominal rate if the average interval is below ``limits.shortest``.

    Raises:
        UncertainTimestamps: if the file states no possible rate.
    """
    if len(pts) < 2 or pts[-1] - pts[0] >= limits.shortest * (len(pts) - 1):
        return list(pts)
    if nominal is None or nominal < limits.shortest:
        raise UncertainTimestamps(
            "timestamps are closer together than pictures can be, and the file states no frame rate"
        )
    return [pts[0] + nominal * index for index in range(len(pts))]


def _are_distinct(times: Sequence[int | None]) -> bool:
    """Whether every picture has a timestamp of its own."""
    return None not in times and len(set(times)) == len(times)


def _without_steps_back(pts: Sequence[int], nominal: int) -> list[int]:
    """Timestamps that continue one interval later wherever ``pts`` steps back; empty if it steps back too often."""
    backward = sum(after <= before for before, after in itertools.pairwise(pts))
    if backward > len(pts) // MIN_RECORDING_PICTURES:
        return []
    offset, continued = 0, [pts[0]]
    for before, after in itertools.pairwise(pts):
        if after <= before:
            offset += before + nominal - after
        continued.append(after + offset)
    return continued


def _constant_rate_start(dts: Sequence[int | None], nominal: int) -> int | None:
    """First timestamp of the constant rate that most DTS keep; None if there is no such rate.

    In a program stream with one timestamp for several pictures, FFmpeg assigns it to the wrong one or invents others.
    """
    starts = [time - nominal * index for index, time in enumerate(dts) if time is not None]
    if not starts:
        return None
    start, count = Counter(starts).most_common(1)[0]
    keeps_ends = abs(starts[0] - start) <= nominal and abs(starts[-1] - start) <= nominal
    deviation = max(abs(each - start) for each in starts)
    return start if keeps_ends and count * 2 >= len(starts) and deviation <= MAX_REORDERED * nominal else None


def _longest_ascending(pts: Sequence[int | None]) -> list[int]:
    """Indices of the longest subsequence of ascending timestamps."""
    tails: list[int] = []
    ends: list[int] = []
    before: dict[int, int | None] = {}
    for index, time in enumerate(pts):
        if time is None:
            continue
        length = bisect_left(tails, time)
        if length < len(tails) and tails[length] == time:
            continue  # of equal timestamps the first is kept
        before[index] = ends[length - 1] if length else None
        tails[length : length + 1] = [time]
        ends[length : length + 1] = [index]
    found: list[int] = []
    index_or_none = ends[-1] if ends else None
    while index_or_none is not None:
        found.append(index_or_none)
        index_or_none = before[index_or_none]
    return found[::-1]
