"""The dashboard of a root: one HTML page over all shards, made from their summaries.

Its cost does not grow with the number of windows: a listing of the summaries, one merged object, and the summaries that
changed. The page opens from a disk and from a presigned address. Its search over captions needs the server.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import accumulate, zip_longest
from operator import attrgetter
from typing import Any

from caption_assets.captioning.text import split_words
from caption_assets.checks.near_duplicates import TextGroups, count_distinct
from caption_assets.report.page import Properties, render_scripted
from caption_assets.report.shard_summary import (
    SCORE_BINS,
    WORD_STEP,
    CaptionGroup,
    Example,
    ShardSummary,
    StageSummary,
)
from caption_assets.report.sides import stage_heading, stage_label
from caption_assets.report.summaries import Summaries, summary_tags
from caption_assets.sources.shard import KEY_PATTERN
from caption_assets.store.previews import GALLERY
from caption_assets.store.root import Root

PAGE = f"{GALLERY}/index.html"
"""The path of the dashboard, relative to the root."""
INTERVAL_SECONDS = 60.0
"""Minimum time between two updates in a run over several shards."""
ATTEMPTS = 3
"""Maximum number of updates in a row, if summaries change during an update."""
BARS = 40
"""Maximum number of bars of a histogram."""
LONGEST = 0.999
"""Share of the captions that a histogram of words shows in bars of their own. The last bar has the longer ones."""
KINDS = 12
"""Maximum number of kinds of error, of flags and of choices in a list."""
SHOWN_WORST = 20
"""Maximum number of examples with the same reason."""
SHOWN_GROUPS = 20
"""Maximum number of groups of near-duplicates in each stage."""
MAX_GROUPS = 20_000
"""Maximum number of groups that are merged, the largest first: each takes 50 µs."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of shards."""

    label: str
    kind: str
    """``name``, ``count``, ``number``, ``share``, ``seconds`` or ``time``: decides how a value is shown."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram with bins of equal width."""

    title: str
    summary: str
    """The mean, for readers who do not see the bars."""
    counts: Sequence[int]
    first: str
    """Lower limit of the first bin."""
    last: str
    """Upper limit of the last bin."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Numbers by name, the largest first."""

    title: str
    counts: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class WorstWindow:
    """An example with its place."""

    shard: str
    stage: str
    example: Example


@dataclass(slots=True)
class RepeatedCaption:
    """A group of near-duplicates over all shards."""

    stage: str
    shard: str
    """The shard with the largest part of the group."""
    first: CaptionGroup
    count: int = 0
    shards: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Dashboard:
    """The content of the page."""

    root: str
    figures: Properties
    histograms: Sequence[Histogram]
    rankings: Sequence[Ranking]
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    """A value for each column, or None."""
    worst: Sequence[WorstWindow]
    repeated: Sequence[RepeatedCaption]
    unsummarized: int
    """Number of shards that have previews or a gallery, but no summary."""


class DashboardUpdates:
    """The updates of the dashboard in a run over several shards: the first shard's, one a minute, and one at the end.

    Args:
        root: the root.
        interval: minimum time between two updates, in seconds.
    """

    def __init__(self, root: Root, interval: float = INTERVAL_SECONDS) -> None:
        self._root = root
        self._interval = interval
        self._not_before = time.monotonic()
        self._is_due = False

    def shard_changed(self) -> None:
        """Update the dashboard, unless that was done within the interval.

        Raises:
            StoreError: if the root cannot be read or written.
        """
        self._is_due = True
        if time.monotonic() >= self._not_before:
            self.finish()

    def finish(self) -> None:
        """Update the dashboard if a shard changed since the last update.

        Raises:
            StoreError: if the root cannot be read or written.
        """
        if self._is_due:
            self._is_due = False
            update_dashboard(self._root)
            self._not_before = time.monotonic() + self._interval


def update_dashboard(root: Root) -> str:
    """Make the dashboard anew from the shards' summaries and return its path.

    Summaries that change during the update are included: a process that writes the page last repeats its update.

    Raises:
        StoreError: if the root cannot be read or written.
    """
    for _ in range(ATTEMPTS):
        summaries = Summaries.read(root)
        if not summaries.is_merged:
            summaries.write(root)
        root.write(PAGE, render_dashboard(root, summaries).encode())
        if summary_tags(root) == summaries.tags:
            break
    return PAGE


def render_dashboard(root: Root, summaries: Summaries | None = None) -> str:
    """Render the page without writing anything.

    Args:
        root: the root.
        summaries: its summaries; None to read them.

    Raises:
        StoreError: if the root cannot be read.
    """
    summaries = summaries or Summaries.read(root)
    galleries = [name for name in root.names(GALLERY) if KEY_PATTERN.fullmatch(name) and name != "index.html"]
    page = build_dashboard(root.url, summaries.decode(), galleries)
    return render_scripted(
        "dashboard.html",
        ("page.css", "dashboard.css"),
        "dashboard.js",
        page=page,
        columns=[(column.label, column.kind) for column in page.columns],
        worst=[_worst_json(window) for window in page.worst],
        repeated=[
            (
                group.count,
                len(group.shards),
                stage_heading(group.stage),
                group.shard,
                group.first.clip,
                group.first.text,
            )
            for group in page.repeated
        ],
    )


def build_dashboard(root: str, summaries: Iterable[ShardSummary], galleries: Iterable[str]) -> Dashboard:
    """Merge the summaries of all shards.

    Args:
        root: the root's URL.
        summaries: the summaries. Those of shards without a gallery are left out.
        galleries: the shards that have a gallery.
    """
    names = set(galleries)
    shards = [summary for summary in summaries if summary.shard in names]
    stages = list(dict.fromkeys(stage for shard in shards for stage in shard.stages))
    by_stage = {stage: [shard.stages[stage] for shard in shards if stage in shard.stages] for stage in stages}
    columns = list(_columns(shards, by_stage))
    missing = names.difference(shard.shard for shard in shards)
    rows = [[column.value(shard) for column in columns] for shard in shards]
    rows += [[shard, *[None] * (len(columns) - 1)] for shard in missing]
    return Dashboard(
        root,
        _figures(shards, by_stage, len(names)),
        [*_word_histograms(by_stage), *_score_histograms(by_stage)],
        list(_rankings(shards, by_stage)),
        [Column(column.label, column.kind) for column in columns],
        sorted(rows, key=lambda row: str(row[0])),
        _worst(shards),
        [group for stage in stages for group in _repeated(stage, shards)],
        len(missing),
    )


@dataclass(frozen=True, slots=True)
class _ValueColumn:
    label: str
    kind: str
    value: Callable[[ShardSummary], Any]


def _columns(shards: Sequence[ShardSummary], by_stage: Mapping[str, Sequence[StageSummary]]) -> Iterator[_ValueColumn]:
    """The columns of the table of shards. Those without any value are left out."""
    yield _ValueColumn("Shard", "name", lambda shard: shard.shard)
    yield _ValueColumn("Rows", "count", lambda shard: shard.windows)
    yield _ValueColumn("Captioned", "count", lambda shard: shard.statuses.get("captioned", 0))
    yield _ValueColumn("Failed", "count", lambda shard: shard.statuses.get("failed", 0))
    yield _ValueColumn("Unreadable", "count", lambda shard: shard.statuses.get("unreadable", 0))
    for stage, found in by_stage.items():
        label = stage_label(stage)
        if any(one.worded for one in found):
            yield _ValueColumn(f"Flagged in {label}", "count", _of(stage, lambda one: one.flagged))
            yield _ValueColumn(f"Mean words in {label}", "number", _of(stage, _mean_words))
        if any(one.texts.count for one in found):
            yield _ValueColumn(f"Near-duplicates in {label}", "share", _of(stage, _copied))
        if any(one.scored for one in found):
            yield _ValueColumn(f"Mean score of {label}", "number", _of(stage, _mean_score))
    if any(shard.spent.engine_seconds for shard in shards):
        yield _ValueColumn("Engine time", "seconds", lambda shard: shard.spent.engine_seconds or None)
    if any(shard.spent.cost is not None for shard in shards):
        yield _ValueColumn("Cost", "number", lambda shard: shard.spent.cost)
    yield _ValueColumn("Updated", "time", lambda shard: shard.written)


def _of(stage: str, value: Callable[[StageSummary], Any]) -> Callable[[ShardSummary], Any]:
    """A value of a stage; None for shards without its table."""
    return lambda shard: value(shard.stages[stage]) if stage in shard.stages else None


def _mean_words(one: StageSummary) -> float | None:
    return round(one.words / one.worded, 2) if one.worded else None


def _mean_score(one: StageSummary) -> float | None:
    return round(one.score_sum / one.scored, 3) if one.scored else None


def _copied(one: StageSummary) -> float | None:
    return round(one.copies / one.captions, 4) if one.texts.count else None


def _figures(
    shards: Sequence[ShardSummary], by_stage: Mapping[str, Sequence[StageSummary]], galleries: int
) -> Properties:
    statuses = _sum(shard.statuses for shard in shards)
    windows = sum(shard.windows for shard in shards)
    figures = [
        ("shards", f"{galleries:,}"),
        ("clips", f"{sum(shard.clips for shard in shards):,}"),
        ("rows", f"{windows:,}"),
        *((status, f"{count:,} ({count / windows:.1%})") for status, count in statuses.most_common()),
    ]
    for stage, found in by_stage.items():
        if flagged := sum(one.flagged for one in found):
            figures.append((f"flagged in {stage_label(stage)}", f"{flagged:,}"))
        if texts := sum(one.captions for one in found if one.texts.count):
            repeated = 1 - count_distinct([one.texts for one in found]) / texts
            figures.append((f"repeated texts in {stage_label(stage)}", f"{max(repeated, 0):.1%}"))
    seconds = sum(shard.spent.engine_seconds for shard in shards)
    gpu_seconds = sum(shard.spent.gpu_seconds for shard in shards)
    costs = [shard.spent.cost for shard in shards if shard.spent.cost is not None]
    figures += [("engine hours", f"{seconds / 3600:,.1f}")] if seconds else []
    figures += [("GPU hours", f"{gpu_seconds / 3600:,.1f}")] if gpu_seconds else []
    figures += [("cost", f"{sum(costs):,.2f}")] if costs else []
    return figures


def _word_histograms(by_stage: Mapping[str, Sequence[StageSummary]]) -> Iterator[Histogram]:
    for stage, found in by_stage.items():
        if not (worded := sum(one.worded for one in found)):
            continue
        bins = _add(one.word_bins for one in found)
        so_far = list(accumulate(bins))
        end = 1 + next(number for number, count in enumerate(so_far) if count >= LONGEST * worded)
        width = -(-end // BARS)
        counts = [sum(bins[begin : begin + width]) for begin in range(0, end, width)]
        counts[-1] += sum(bins[len(counts) * width :])
        longest = len(counts) * width * WORD_STEP
        mean = sum(one.words for one in found) / worded
        yield Histogram(
            f"Words in {stage_label(stage)}",
            f"mean {mean:.1f}",
            counts,
            "0",
            f"{longest:,}{' and more' if end < len(bins) else ''}",
        )


def _score_histograms(by_stage: Mapping[str, Sequence[StageSummary]]) -> Iterator[Histogram]:
    for stage, found in by_stage.items():
        if scored := sum(one.scored for one in found):
            bins = _add(one.score_bins for one in found)
            mean = sum(one.score_sum for one in found) / scored
            counts = [*bins, *[0] * (SCORE_BINS - len(bins))]
            yield Histogram(f"Scores of {stage_label(stage)}", f"mean {mean:.3f}", counts, "0", "1")


def _rankings(shards: Sequence[ShardSummary], by_stage: Mapping[str, Sequence[StageSummary]]) -> Iterator[Ranking]:
    found = [("Unreadable clips", _sum(shard.unreadable for shard in shards))]
    for stage, summaries in by_stage.items():
        label = stage_label(stage)
        found.append((f"Failures in {label}", _sum(one.failed for one in summaries)))
        found.append((f"Flags in {label}", _sum(one.flags for one in summaries)))
        found.append((f"Choices in {label}", _sum(one.choices for one in summaries)))
        truncated = sum(one.truncated for one in summaries)
        found.append((f"Cut off in {label}", Counter({"output limit": truncated} if truncated else {})))
    for title, counts in found:
        if counts:
            yield Ranking(title, counts.most_common(KINDS))


def _worst(shards: Sequence[ShardSummary]) -> list[WorstWindow]:
    """The worst examples of each reason, those that are equally bad from different shards in turn."""
    by_reason: defaultdict[str, list[WorstWindow]] = defaultdict(list)
    in_turn = zip_longest(
        *(
            [WorstWindow(shard.shard, stage, example) for stage, one in shard.stages.items() for example in one.worst]
            for shard in shards
        )
    )
    for window in (window for turn in in_turn for window in turn if window):
        by_reason[window.example.reason].append(window)
    worst = (nlargest(SHOWN_WORST, windows, key=attrgetter("example.badness")) for windows in by_reason.values())
    return [window for windows in worst for window in windows]


def _repeated(stage: str, shards: Sequence[ShardSummary]) -> list[RepeatedCaption]:
    """The largest groups of near-duplicates of a stage, over all shards."""
    parts = [(shard.shard, group) for shard in shards if stage in shard.stages for group in shard.stages[stage].groups]
    texts = TextGroups()
    merged: list[RepeatedCaption] = []
    for shard, part in nlargest(MAX_GROUPS, parts, key=lambda part: part[1].count):
        number = texts.group(split_words(part.text))
        if number == len(merged):
            merged.append(RepeatedCaption(stage, shard, part))
        merged[number].count += part.count
        merged[number].shards.add(shard)
    return nlargest(SHOWN_GROUPS, merged, key=lambda group: group.count)


def _worst_json(window: WorstWindow) -> tuple[str, ...]:
    example = window.example
    place = f"{example.clip}, {example.position}"
    return example.reason, example.detail, stage_heading(window.stage), window.shard, example.clip, place, example.text


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def _add(histograms: Iterable[Sequence[int]]) -> list[int]:
    return [sum(counts) for counts in zip_longest(*histograms, fillvalue=0)]
