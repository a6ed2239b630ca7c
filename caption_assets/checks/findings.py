"""What is found when published tables are looked at: pure functions from rows to findings, with what they counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean, stdev

import pyarrow as pa

from caption_assets.captioning.open_shard import failed_fraction
from caption_assets.captioning.prefix_cache import MIN_SHARE, CacheHits
from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.captioning.text import split_words
from caption_assets.models.weights import WeightsManifest, format_size
from caption_assets.store.tables import SCHEMA_VERSION, CaptionRow, ManifestRow, Status, schema_of

MAX_TRUNCATED = 0.05
"""Share of the captions: a few run away with any model; more means that the output limit is too low."""
MAX_FLAGGED = 0.1
"""Share of the captions. From one in ten on it is the prompt or the model, and no more the odd clip."""
MAX_DUPLICATES = 0.1
"""Share of the captions. Two clips may look alike; where one in ten does, clips are copies or the model repeats."""
MAX_ADDING_NOTHING = 0.1
"""Share of the windows that both stages captioned."""
LEAST_STAGE2_LENGTH = 0.8
"""Words of stage 2 for one of stage 1: a fuller description may be worded more tightly, but not by a fifth."""
EARLIER_SHARDS = 50
"""That a shard's captions are compared with: enough for a spread, and little to fetch."""
LEAST_EARLIER_SHARDS = 5
"""Below which the spread is not known well enough to compare with."""
SIGMAS = 3.0
"""Standard deviations that a mean may be off: the customary limit of control charts (Shewhart)."""
LEAST_DEVIATION = 0.1
"""Share of the earlier mean below which nobody would care, however alike the earlier shards are."""
EXAMPLE_CHARACTERS = 200
"""Of a text that is told as an example: captions may be of any length."""

Facts = Mapping[str, int | float | str]


class Severity(StrEnum):
    """What a check that does not pass means."""

    ERROR = "error"
    """The shard is not recorded as materialized, and fails."""
    WARN = "warn"
    """Somebody should look."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that is looked at."""

    name: str
    severity: Severity
    description: str


ROWS_COMPLETE = Check("rows_complete", Severity.ERROR, "One row for each of the manifest's, in its order.")
SCHEMA = Check("schema", Severity.ERROR, "The columns, and their version, are those that this version writes.")
FAILED = Check(
    "failed_fraction", Severity.ERROR, "Windows without a caption are at most CAPTION_MAX_FAILED_FRACTION of all."
)
TRUNCATED = Check(
    "truncated_fraction",
    Severity.WARN,
    f"Captions that reached CAPTION_MAX_OUTPUT_TOKENS are at most {MAX_TRUNCATED:.0%}.",
)
FLAGGED = Check("flagged_fraction", Severity.WARN, f"Captions with quality flags are at most {MAX_FLAGGED:.0%}.")
DUPLICATES = Check(
    "duplicate_captions",
    Severity.WARN,
    f"Captions that say what another clip's said before, case and punctuation aside, are at most {MAX_DUPLICATES:.0%}.",
)
LENGTH = Check(
    "caption_length",
    Severity.WARN,
    f"The mean number of words is within {SIGMAS:g} standard deviations of those of up to {EARLIER_SHARDS} earlier "
    f"shards captioned alike, or less than {LEAST_DEVIATION:.0%} off. Looked at from {LEAST_EARLIER_SHARDS} shards on.",
)
ADDS = Check(
    "adds_to_stage1",
    Severity.WARN,
    f"Stage-2 captions that are their stage-1 caption, or shorter than {LEAST_STAGE2_LENGTH:.0%} of it, are at most "
    f"{MAX_ADDING_NOTHING:.0%}.",
)
CACHE_HITS = Check(
    "prefix_cache_hits",
    Severity.WARN,
    f"At least {MIN_SHARE:.0%} of the tokens that stage 2 could take from the engine's prefix cache came from there.",
)
WEIGHTS_VERIFIED = Check(
    "weights_verified", Severity.ERROR, "Every file of the mirror is there, and has the SHA-256 of the manifest."
)
_OF_BOTH = (ROWS_COMPLETE, SCHEMA, FAILED, TRUNCATED, FLAGGED, DUPLICATES, LENGTH)
CHECKS: Mapping[str, tuple[Check, ...]] = {STAGE1.name: _OF_BOTH, STAGE2.name: (*_OF_BOTH, ADDS, CACHE_HITS)}
"""What is looked at in each caption table."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a check."""

    check: Check
    passed: bool
    message: str
    """What was found, for a person; where it did not pass, also what to do."""
    facts: Facts = field(default_factory=dict)
    """The counts behind it, with an example."""

    @property
    def is_error(self) -> bool:
        """Whether the shard fails of it."""
        return not self.passed and self.check.severity is Severity.ERROR


@dataclass(frozen=True, slots=True)
class Said:
    """A row that has a caption."""

    row: CaptionRow
    words: Sequence[str]
    """Of the caption, in lower case and without punctuation."""


@dataclass(frozen=True, slots=True)
class Looked:
    """A caption table of a shard, and what it is looked at beside."""

    table: str
    schema: pa.Schema
    """As it stands in the file."""
    rows: Sequence[CaptionRow]
    said: Sequence[Said]
    """Those of the rows that have a caption."""
    manifest: Sequence[ManifestRow]
    stage1: Sequence[Said] = ()
    """What the stage-1 table says, beside stage 2."""


def said(rows: Sequence[CaptionRow]) -> list[Said]:
    """The rows that have a caption, with its words."""
    return [Said(row, split_words(row.caption)) for row in rows if row.caption is not None]


def mean_words(captions: Sequence[Said]) -> float | None:
    """Mean number of words; None if there are no captions."""
    return fmean(len(one.words) for one in captions) if captions else None


def find(looked: Looked, *, max_failed_fraction: float, earlier_means: Sequence[float]) -> list[Finding]:
    """All findings on a table, in the order of ``CHECKS``.

    Args:
        looked: the table.
        max_failed_fraction: of the captionable windows.
        earlier_means: mean number of words of earlier shards that were captioned alike.
    """
    findings = [
        rows_complete(looked),
        schema_known(looked),
        few_failed(looked, max_failed_fraction),
        few_truncated(looked.said),
        few_flagged(looked.said),
        few_duplicates(looked.said),
        usual_length(looked.said, earlier_means),
    ]
    if looked.table != STAGE2.name:
        return findings
    return [*findings, adds_to_stage1(looked.stage1, looked.said), prefix_cache_hits(looked.schema)]


def rows_complete(looked: Looked) -> Finding:
    """Whether the table has exactly the manifest's rows, in order."""
    expected, found = [row.key for row in looked.manifest], [row.key for row in looked.rows]
    missing, extra = set(expected) - set(found), set(found) - set(expected)
    facts = {"rows": len(found), "manifest_rows": len(expected), "missing": len(missing), "too_many": len(extra)}
    if found == expected:
        return Finding(ROWS_COMPLETE, True, f"all {len(expected)} rows of the manifest, in order", facts)
    return Finding(
        ROWS_COMPLETE,
        False,
        f"{looked.table} has {len(found)} rows for {len(expected)} of the manifest ({len(missing)} missing, "
        f"{len(extra)} too many, or out of order): materialize it again",
        facts,
    )


def schema_known(looked: Looked) -> Finding:
    """Whether the table's columns and version are those that this version writes."""
    known, found = schema_of(looked.table), looked.schema
    version = (found.metadata or {}).get(b"schema_version", b"none").decode()
    names = {*known.names, *found.names}
    both = {*known.names} & {*found.names}
    other = sorted(name for name in names if name not in both or not found.field(name).equals(known.field(name)))
    facts: Facts = {"schema_version": version, "columns": len(found.names), "other_columns": ", ".join(other)}
    if version == SCHEMA_VERSION and not other:
        return Finding(SCHEMA, True, f"version {version}, {len(found.names)} columns", facts)
    differing = f"; other columns: {', '.join(other)}" if other else ""
    return Finding(
        SCHEMA,
        False,
        f"{looked.table} is of schema version {version}, and this is version {SCHEMA_VERSION}{differing}: materialize "
        "it again",
        facts,
    )


def few_failed(looked: Looked, limit: float) -> Finding:
    """Whether few of the captionable windows have no caption. Clips that cannot be read are the manifest's matter."""
    failed = [row for row in looked.rows if row.status is Status.FAILED and row.window_index is not None]
    fraction = failed_fraction(looked.rows)
    facts: Facts = {"failed": len(failed), "fraction": round(fraction, 4), "limit": limit}
    if fraction <= limit:
        return Finding(FAILED, True, f"{fraction:.1%} of the windows failed", facts)
    first = failed[0]
    return Finding(
        FAILED,
        False,
        f"{fraction:.0%} of the windows of {looked.table} failed, more than CAPTION_MAX_FAILED_FRACTION = {limit:g}; "
        f"the first: {first.clip_key!r}, window {first.window_index}: {first.error}. The table was published for you "
        "to look at; mend the cause or raise the limit, and materialize the shard again",
        {**facts, "example": _short(f"{first.clip_key}: {first.error}")},
    )


def few_truncated(captions: Sequence[Said]) -> Finding:
    """Whether few captions were cut off."""
    cut = [one for one in captions if one.row.finish_reason == "length"]
    return _few(
        TRUNCATED, cut, captions, MAX_TRUNCATED, "were cut off", "look at their ends; raise CAPTION_MAX_OUTPUT_TOKENS"
    )


def few_flagged(captions: Sequence[Said]) -> Finding:
    """Whether few captions have quality flags."""
    flagged = [one for one in captions if one.row.flags]
    kinds = Counter(flag for one in flagged for flag in one.row.flags)
    return _few(
        FLAGGED,
        flagged,
        captions,
        MAX_FLAGGED,
        "have quality flags",
        "filter the gallery by flag; prompt or model may not suit the clips",
        {f"flag_{flag}": count for flag, count in kinds.most_common()},
    )


def few_duplicates(captions: Sequence[Said]) -> Finding:
    """Whether few captions repeat another clip's: of a group that says the same, all clips but one."""
    groups: dict[str, dict[str, Said]] = defaultdict(dict)
    for one in captions:
        groups[" ".join(one.words)].setdefault(one.row.clip_key, one)
    repeated = [one for clips in groups.values() for one in list(clips.values())[1:]]
    most = max(map(len, groups.values()), default=0)
    return _few(
        DUPLICATES,
        repeated,
        captions,
        MAX_DUPLICATES,
        "say what another clip's said before",
        "look whether clips are copies, or the model repeats itself",
        {"most_clips_with_one_caption": most},
    )


def usual_length(captions: Sequence[Said], earlier: Sequence[float]) -> Finding:
    """Whether captions are as long as earlier shards', by the mean number of words."""
    words = mean_words(captions)
    facts: dict[str, int | float | str] = {"earlier_shards": len(earlier)}
    if words is None:
        return Finding(LENGTH, True, "there are no captions", facts)
    facts["mean_words"] = round(words, 2)
    if len(earlier) < LEAST_EARLIER_SHARDS:
        return Finding(
            LENGTH, True, f"{words:.1f} words; {len(earlier)} earlier shards are too few to compare with", facts
        )
    usual, spread = fmean(earlier), stdev(earlier)
    allowed = max(SIGMAS * spread, LEAST_DEVIATION * usual)
    facts |= {"earlier_mean": round(usual, 2), "earlier_deviation": round(spread, 2), "limit": round(allowed, 2)}
    compared = f"{words:.1f} words; {len(earlier)} earlier shards have {usual:.1f} ± {allowed:.1f}"
    if abs(words - usual) <= allowed:
        return Finding(LENGTH, True, compared, facts)
    return Finding(LENGTH, False, f"{compared}: look whether the clips are of another kind, or the model fails", facts)


def adds_to_stage1(stage1: Sequence[Said], stage2: Sequence[Said]) -> Finding:
    """Whether few stage-2 captions are their stage-1 caption, or much shorter."""
    before = {one.row.key: one.words for one in stage1}
    both = [one for one in stage2 if one.row.key in before]
    equal = [one for one in both if one.words == before[one.row.key]]
    shorter = [one for one in both if len(one.words) < LEAST_STAGE2_LENGTH * len(before[one.row.key])]
    return _few(
        ADDS,
        [*equal, *shorter],
        both,
        MAX_ADDING_NOTHING,
        "add nothing to stage 1",
        "look at the stage-2 prompt",
        {"equal": len(equal), "shorter": len(shorter)},
    )


def prefix_cache_hits(schema: pa.Schema) -> Finding:
    """Whether the run that made a stage-2 table took the videos' tokens from the prefix cache."""
    metadata = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
    hits = CacheHits.from_facts(metadata)
    if not hits.predicted:
        return Finding(CACHE_HITS, True, "no window was captioned in both stages by one engine")
    facts: Facts = {
        "cached_tokens": hits.cached,
        "predicted_tokens": hits.predicted,
        "fraction": round(hits.share, 4),
        "limit": MIN_SHARE,
    }
    return Finding(CACHE_HITS, not hits.is_low, hits.summary, facts)


def weights_verified(manifests: Sequence[WeightsManifest], damaged: Mapping[str, str]) -> Finding:
    """Whether all mirrored files are what their manifests say; ``damaged`` are those that are not, with the reason."""
    files, size = sum(len(manifest.files) for manifest in manifests), sum(manifest.size for manifest in manifests)
    facts: Facts = {"files": files, "bytes": size, "damaged": len(damaged)}
    if not damaged:
        return Finding(WEIGHTS_VERIFIED, True, f"{files} files, {format_size(size)}: all hashes are right", facts)
    path, reason = next(iter(damaged.items()))
    return Finding(
        WEIGHTS_VERIFIED,
        False,
        f"{len(damaged)} of {files} files are not what the manifest says; the first: {path}: {reason}. "
        "Set CAPTION_VERIFY_WEIGHTS=true and materialize model_weights, which mends the mirror",
        {**facts, "example": path},
    )


def _few(
    check: Check,
    found: Sequence[Said],
    captions: Sequence[Said],
    limit: float,
    what: str,
    remedy: str,
    more: Facts | None = None,
) -> Finding:
    """Whether a share of the captions is within its limit; where it is not, the first one found is the example."""
    fraction = len(found) / len(captions) if captions else 0.0
    facts = {"count": len(found), "fraction": round(fraction, 4), "limit": limit, **(more or {})}
    message = f"{len(found)} of {len(captions)} captions {what}"
    if fraction <= limit:
        return Finding(check, True, message, facts)
    facts["example"] = _short(f"{found[0].row.clip_key}: {found[0].row.caption}")
    return Finding(check, False, f"{message}, more than {limit:.0%}: {remedy}", facts)


def _short(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[: EXAMPLE_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
