"""The summary of a shard: counts, lengths, scores, costs and examples, from which the dashboard is made.

It is one small object beside the gallery, of bounded size: a page over all shards is made without reading their tables.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import nlargest, nsmallest
from operator import attrgetter

from pydantic import TypeAdapter, ValidationError

from caption_assets.captioning.window_job import UPSTREAM_FAILED
from caption_assets.checks.near_duplicates import DistinctTexts, TextGroups
from caption_assets.checks.stored_tables import StoredShard, StoredTable, count_flagged
from caption_assets.report.gallery import Tables, window_status
from caption_assets.report.sides import position
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, Status, TableError, extent
from caption_assets.store.versions import FORMER_KINDS

SUMMARIES = "_summaries"
"""The folder of all summaries. One listing of it finds those that changed."""
WORD_STEP = 5
"""Width of a bin of the histogram of words."""
WORD_BINS = 200
"""Number of these bins. Longer captions count in the last one."""
SCORE_BINS = 20
"""Number of bins of the histogram of scores, from 0 to 1."""
WORST = 5
"""Maximum number of examples of failed, of flagged and of low-scored windows in each stage."""
GROUPS = 20
"""Maximum number of groups of near-duplicates in each stage, the largest first."""
CHOICES = 20
"""Maximum number of choices with a count, the most frequent first."""
TEXT = 300
"""Maximum length of an example, in characters."""
FAILED, FLAGGED, LOW_SCORE = "failed", "flagged", "low score"
LOW = 0.5
"""Limit of low scores: below it the choice that counts as good is less probable than the others together."""
_UPSTREAM_KINDS = (UPSTREAM_FAILED, FORMER_KINDS[UPSTREAM_FAILED])


@dataclass(frozen=True, slots=True)
class Spending:
    """What a shard's captions cost, over all runs since the first summary."""

    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cost: float | None = None
    """GPU time multiplied by CAPTION_GPU_HOUR_PRICE; None if no run had a price."""

    def __add__(self, other: Spending) -> Spending:
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return Spending(
            self.engine_seconds + other.engine_seconds,
            self.gpu_seconds + other.gpu_seconds,
            sum(costs) if costs else None,
        )


@dataclass(frozen=True, slots=True)
class Example:
    """A window that somebody should look at."""

    reason: str
    """``failed``, ``flagged`` or ``low score``."""
    detail: str
    """Kind of error, flags, or score."""
    badness: float
    """The larger, the worse, among the examples with the same reason."""
    clip: str
    position: str
    """The window's number and time range."""
    window_id: str
    text: str
    """The caption or the error, shortened."""


@dataclass(frozen=True, slots=True)
class CaptionGroup:
    """Captions that are equal or nearly equal, in two clips or more."""

    count: int
    """Number of captions."""
    clip: str
    """The first clip."""
    window_id: str
    text: str
    """Its caption, shortened."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """The captions of one stage."""

    captions: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    """Number of rows without a caption by kind of error. Rows that lack a text that they need do not count."""
    flagged: int = 0
    """Number of rows with quality flags."""
    flags: Mapping[str, int] = field(default_factory=dict)
    """Number of rows by quality flag."""
    truncated: int = 0
    """Number of captions that reached their output limit."""
    worded: int = 0
    """Number of captions whose words are counted: all but choices."""
    words: int = 0
    """Number of words of these captions."""
    word_bins: Sequence[int] = ()
    """Histogram of the number of words; without the empty bins at its end."""
    scored: int = 0
    """Number of captions with a score."""
    score_sum: float = 0.0
    score_bins: Sequence[int] = ()
    """Histogram of the scores; empty if there are none."""
    choices: Mapping[str, int] = field(default_factory=dict)
    """Number of captions by choice."""
    texts: DistinctTexts = field(default_factory=DistinctTexts)
    """Distinct free texts, without case and punctuation."""
    copies: int = 0
    """Number of free texts that are near-duplicates of an earlier one in the shard."""
    groups: Sequence[CaptionGroup] = ()
    """The largest groups of near-duplicates."""
    worst: Sequence[Example] = ()


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """A shard's manifest and captions in numbers and examples."""

    shard: str
    written: str
    """Time of the summary, in ISO 8601."""
    clips: int
    windows: int
    """Number of rows of the manifest."""
    statuses: Mapping[str, int]
    """Number of rows by status, as in the gallery."""
    unreadable: Mapping[str, int]
    """Number of clips that cannot be read, by kind of error."""
    stages: Mapping[str, StageSummary]
    """By stage, in the recipe's order; a stage without a table is left out."""
    spent: Spending = Spending()


_CODEC = TypeAdapter(ShardSummary)


def summary_path(shard: str) -> str:
    """The path of a shard's summary, relative to the root."""
    return f"{SUMMARIES}/shard={shard}/summary.json"


def write_summary(stored: StoredShard, stages: Sequence[str], spent: Spending | None = None) -> ShardSummary:
    """Summarize a shard's tables and write the summary.

    Args:
        stored: the shard's tables.
        stages: names of the recipe's stages, in order. Other caption tables are left out.
        spent: what the run that published them spent, which is added to the earlier summary's.

    Raises:
        TableError: if the manifest is missing, or a table is damaged.
        StoreError: if the root cannot be read or written.
    """
    before = find_summary(stored.root, stored.shard)
    total = (before.spent if before else Spending()) + (spent or Spending())
    summary = summarize(stored.shard, stored.manifest, {stage: stored.find(stage) for stage in stages}, total)
    stored.root.write(summary_path(stored.shard), encode_summary(summary))
    return summary


def find_summary(root: Root, shard: str) -> ShardSummary | None:
    """A shard's summary; None if it is missing, damaged or of another release.

    Raises:
        StoreError: if it cannot be read.
    """
    try:
        return decode_summary(root.read(summary_path(shard)))
    except (FileNotFoundError, TableError):
        return None


def encode_summary(summary: ShardSummary) -> bytes:
    """A summary as JSON."""
    return _CODEC.dump_json(summary)


def decode_summary(data: bytes | str) -> ShardSummary:
    """Parse a summary.

    Raises:
        TableError: if it is damaged or of another release.
    """
    try:
        return _CODEC.validate_json(data)
    except ValidationError as error:
        raise TableError(f"the summary is damaged or of another release: {error.errors()[0]['msg']}") from error


def summarize(
    shard: str, manifest: Sequence[ManifestRow], tables: Tables, spent: Spending = Spending()
) -> ShardSummary:
    """Summarize a shard.

    Args:
        shard: the shard's key.
        manifest: its windows.
        tables: its caption tables.
        spent: what its captions cost so far.
    """
    made: defaultdict[object, list[CaptionRow]] = defaultdict(list)
    for table in tables.values():
        for row in table.rows if table else ():
            made[extent(row)].append(row)
    statuses = Counter(window_status(window, made.get(extent(window), ())) for window in manifest)
    return ShardSummary(
        shard=shard,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        clips=len({window.clip_key for window in manifest}),
        windows=len(manifest),
        statuses=dict(statuses.most_common()),
        unreadable=_counted(window.error_kind or "" for window in manifest if window.status is Status.FAILED),
        stages={stage: _stage(table) for stage, table in tables.items() if table},
        spent=spent,
    )


def _stage(table: StoredTable) -> StageSummary:
    failed = [row for row in table.rows if row.status is Status.FAILED and row.error_kind not in _UPSTREAM_KINDS]
    words = [] if table.has_choices else [len(caption.words) for caption in table.captions]
    scores = list(_scores(table))
    texts = [caption.words for caption in table.captions] if table.is_text else []
    groups, copies = _groups(table) if table.is_text else ([], 0)
    return StageSummary(
        captions=len(table.captions),
        failed=_counted(row.error_kind or "" for row in failed),
        flagged=count_flagged(table.rows),
        flags=_counted(flag for row in table.rows for flag in row.flags),
        truncated=sum(row.finish_reason == "length" for row in table.rows),
        worded=len(words),
        words=sum(words),
        word_bins=_histogram((count // WORD_STEP for count in words), WORD_BINS),
        scored=len(scores),
        score_sum=sum(score for _, score in scores),
        score_bins=_histogram((int(score * SCORE_BINS) for _, score in scores), SCORE_BINS),
        choices=_choices(table) if table.has_choices else {},
        texts=DistinctTexts.of(texts),
        copies=copies,
        groups=groups,
        worst=[*_failed(failed), *_flagged(table), *_low_scored(scores)],
    )


def _scores(table: StoredTable) -> Iterator[tuple[CaptionRow, float]]:
    """The rows with the probability of the choice that the recipe names as good."""
    if (choice := table.score_choice) is None:
        return
    for row in table.rows:
        score = (row.probabilities or {}).get(choice)
        if score is not None:
            yield row, score


def _choices(table: StoredTable) -> dict[str, int]:
    return dict(Counter(row.caption for row in table.rows if row.caption is not None).most_common(CHOICES))


def _groups(table: StoredTable) -> tuple[list[CaptionGroup], int]:
    """The largest groups of near-duplicates, and the number of captions after the first one of each group."""
    groups = TextGroups()
    members: list[int] = []
    first: list[CaptionRow] = []
    clips: list[set[str]] = []
    for caption in table.captions:
        number = groups.group(caption.words)
        if number == len(first):
            first.append(caption.row)
            members.append(0)
            clips.append(set())
        members[number] += 1
        clips[number].add(caption.row.clip_key)
    several = [number for number in range(len(first)) if len(clips[number]) > 1]
    largest = nlargest(GROUPS, several, key=members.__getitem__)
    return [
        CaptionGroup(
            members[number], first[number].clip_key, first[number].window_id, shorten(first[number].caption or "")
        )
        for number in largest
    ], sum(members[number] - 1 for number in several)


def _failed(failed: Sequence[CaptionRow]) -> list[Example]:
    """Examples of failed rows: of each kind one, the most frequent kind first, then the others."""
    kinds = Counter(row.error_kind or "" for row in failed)
    seen: Counter[str] = Counter()
    examples = []
    for row in failed:
        kind = row.error_kind or ""
        examples.append(_example(row, FAILED, kind, kinds[kind] / len(failed) - seen[kind]))
        seen[kind] += 1
    return _worst(examples)


def _flagged(table: StoredTable) -> list[Example]:
    return _worst(_example(row, FLAGGED, ", ".join(row.flags), len(row.flags)) for row in table.rows if row.flags)


def _low_scored(scores: Sequence[tuple[CaptionRow, float]]) -> list[Example]:
    low = (scored for scored in scores if scored[1] < LOW)
    lowest = nsmallest(WORST, low, key=lambda scored: scored[1])
    return [_example(row, LOW_SCORE, f"{score:.3f}", 1 - score) for row, score in lowest]


def _worst(examples: Iterable[Example]) -> list[Example]:
    return nlargest(WORST, examples, key=attrgetter("badness"))


def _example(row: CaptionRow, reason: str, detail: str, badness: float) -> Example:
    return Example(
        reason,
        detail,
        badness,
        row.clip_key,
        position(row.window_index, row.start_seconds, row.end_seconds),
        row.window_id,
        shorten((row.error if row.caption is None else row.caption) or ""),
    )


def shorten(text: str) -> str:
    """A text of at most ``TEXT`` characters."""
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}\N{HORIZONTAL ELLIPSIS}"


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _histogram(numbers: Iterable[int], bins: int) -> list[int]:
    """Number of values by bin, without the empty bins at the end. The last bin has the values beyond it."""
    counts = Counter(min(number, bins - 1) for number in numbers)
    return [counts[number] for number in range(max(counts) + 1)] if counts else []
