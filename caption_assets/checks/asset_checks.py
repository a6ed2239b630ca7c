"""Checks of stored tables and weights. Each returns a finding: whether the check passes, with a message and counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from statistics import fmean, stdev

from caption_assets.captioning.output import JsonOutput, TextOutput
from caption_assets.captioning.prefix_cache import MIN_SHARE, CacheHits
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.checks.stored_tables import Caption, StoredShard, StoredTable, mean_words
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.weights import WeightsManifest, format_size
from caption_assets.store.caption_columns import UPSTREAM, CaptionColumns
from caption_assets.store.failure_limits import FailureLimits, Failures
from caption_assets.store.tables import FORMER_UPSTREAM, PREVIOUS, SCHEMA_VERSION, SHARD, ManifestRow, published_schema

MAX_TRUNCATED = 0.05
"""Maximum share of captions that reach the output limit. A few do with any model; if more do, the limit is too low."""
MAX_FLAGGED = 0.1
"""Maximum share of captions with quality flags. If more have flags, the cause is the prompt or the model."""
MAX_DUPLICATES = 0.1
"""Maximum share of duplicate captions. A few clips look alike; if more captions are duplicates, clips are copies or the
model repeats itself."""
MAX_ADDING_NOTHING = 0.1
"""Maximum share of captions that add nothing to the text that they need, among the windows that both stages captioned.
"""
MIN_LENGTH = 0.8
"""Minimum ratio of a caption's words to those of the text that it needs: a fuller description may still use up to a
fifth fewer words."""
EARLIER_SHARDS = 50
"""Maximum number of earlier shards to compare with: enough for a standard deviation, and cheap to fetch."""
MIN_EARLIER_SHARDS = 5
"""Minimum number of earlier shards; with fewer, the standard deviation is too uncertain."""
SIGMAS = 3.0
"""Maximum deviation of a mean, in standard deviations: the usual limit of control charts (Shewhart)."""
MIN_DEVIATION = 0.1
"""Deviation that is always accepted, as a share of the earlier mean: earlier shards may differ very little."""
EXAMPLE_CHARACTERS = 200
"""Maximum length of an example, in characters. Captions have no maximum length."""

CheckMetadata = Mapping[str, int | float | str]
"""Counts and examples of a finding, by name."""


class Severity(StrEnum):
    """The consequence of a check that does not pass."""

    ERROR = "error"
    """The shard fails and is not recorded as materialized."""
    WARN = "warn"
    """The UI shows a warning. The shard is recorded."""


@dataclass(frozen=True, slots=True)
class Check:
    """A named check of a table."""

    name: str
    severity: Severity
    description: str


CLIPS_READABLE = Check(
    "clips_readable",
    Severity.ERROR,
    "The manifest could be made, and at most CAPTION_MAX_UNREADABLE_FRACTION of the clips are unreadable, or at most "
    "CAPTION_MAX_UNREADABLE_CLIPS and not all.",
)
ROWS_COMPLETE = Check("rows_complete", Severity.ERROR, "The table has the manifest's rows, in the manifest's order.")
SCHEMA = Check("schema", Severity.ERROR, "The columns and the schema version are those that this release writes.")
FAILED = Check(
    "failed_fraction",
    Severity.ERROR,
    "At most CAPTION_MAX_FAILED_FRACTION of the readable windows, or CAPTION_MAX_FAILED_WINDOWS, have no caption.",
)
TRUNCATED = Check(
    "truncated_fraction",
    Severity.WARN,
    f"At most {MAX_TRUNCATED:.0%} of the captions reached their output limit and were cut off.",
)
FLAGGED = Check(
    "flagged_fraction",
    Severity.WARN,
    f"At most {MAX_FLAGGED:.0%} of the captions have quality flags, such as repetition or refusal.",
)
DUPLICATES = Check(
    "duplicate_captions",
    Severity.WARN,
    f"At most {MAX_DUPLICATES:.0%} of the captions repeat another clip's, ignoring case and punctuation.",
)
LENGTH = Check(
    "caption_length",
    Severity.WARN,
    f"The mean number of words is within {SIGMAS:g} standard deviations, or within {MIN_DEVIATION:.0%}, of the mean of "
    f"up to {EARLIER_SHARDS} earlier shards with the same code version. Needs at least {MIN_EARLIER_SHARDS} of them.",
)
CACHE_HITS = Check(
    "prefix_cache_hits",
    Severity.WARN,
    f"At least {MIN_SHARE:.0%} of the prompt tokens shared with earlier stages came from the prefix cache.",
)
WEIGHTS_VERIFIED = Check(
    "weights_verified",
    Severity.ERROR,
    "Each mirrored file exists and has the SHA-256 hash in the manifest of the weights.",
)


def adds_check(needed: str) -> Check:
    """The check that captions add something to the texts of a stage that they need."""
    return Check(
        f"adds_to_{needed.removesuffix('_captions')}",
        Severity.WARN,
        f"At most {MAX_ADDING_NOTHING:.0%} of the captions equal that of {needed} or have fewer than {MIN_LENGTH:.0%} "
        "of its words.",
    )


def checks_of(graph: StageGraph, stage: Stage) -> list[Check]:
    """The checks of a stage's table.

    Choices have no words to check. JSON that is cut off counts as failed, and that of many clips may be equal, because
    a schema can leave few possible answers.
    """
    checks = [ROWS_COMPLETE, SCHEMA, FAILED]
    match stage.output:
        case TextOutput():
            checks += [TRUNCATED, FLAGGED, DUPLICATES, LENGTH]
        case JsonOutput():
            checks += [FLAGGED, LENGTH]
    checks += map(adds_check, _extended_texts(graph, stage))
    if stage.video and any(earlier.video for earlier in graph.stages[: graph.stages.index(stage)]):
        checks.append(CACHE_HITS)
    return checks


def _extended_texts(graph: StageGraph, stage: Stage) -> list[str]:
    """The stages whose texts a stage writes more fully: those that a text stage with video needs.

    A text stage without video may be a short version of what it needs.
    """
    if not (stage.video and isinstance(stage.output, TextOutput)):
        return []
    return [name for name in stage.needs if isinstance(graph.stage(name).output, TextOutput)]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check."""

    check: Check
    passed: bool
    message: str
    """The result in words; if the check did not pass, with the remedy."""
    metadata: CheckMetadata = field(default_factory=dict)
    """Counts, and an example if the check did not pass."""

    @property
    def is_error(self) -> bool:
        """Whether the finding fails the shard."""
        return not self.passed and self.check.severity is Severity.ERROR


class CheckFailed(CaptionAssetsError):
    """A table that does not pass a check of severity error. It is not recorded as materialized."""


def raise_errors(findings: Iterable[Finding]) -> None:
    """Raise the first finding that fails the shard.

    Raises:
        CheckFailed: if there is one.
    """
    for finding in findings:
        if finding.is_error:
            raise CheckFailed(finding.message)


def check_table(
    shard: StoredShard, graph: StageGraph, table: str, *, limits: FailureLimits, earlier_means: Sequence[float]
) -> list[Finding]:
    """Read a table and the tables that it is compared with, and run its checks.

    Args:
        shard: the shard.
        graph: the stages.
        table: the table to check.
        limits: limits on failed windows.
        earlier_means: mean number of words in earlier shards with the same code version.

    Raises:
        TableError: if a table is missing or damaged.
        StoreError: if the root cannot be read.
    """
    return run_checks(
        shard.table(table),
        graph,
        shard.manifest,
        {name: shard.table(name).captions for name in _extended_texts(graph, graph.stage(table))},
        limits=limits,
        earlier_means=earlier_means,
    )


def run_checks(
    stored: StoredTable,
    graph: StageGraph,
    manifest: Sequence[ManifestRow],
    needed: Mapping[str, Sequence[Caption]],
    *,
    limits: FailureLimits,
    earlier_means: Sequence[float],
) -> list[Finding]:
    """Run all checks of a table that was read, in the order of ``checks_of``.

    ``needed`` has the captions of the stages whose texts this stage writes more fully. See ``check_table`` for the
    other arguments.
    """
    stage, captions = graph.stage(stored.table), stored.captions
    run: dict[Check, Callable[[], Finding]] = {
        ROWS_COMPLETE: partial(rows_complete, stored, manifest),
        SCHEMA: partial(schema_known, stored, stage.columns),
        FAILED: partial(few_failed, stored, limits),
        TRUNCATED: partial(few_truncated, captions),
        FLAGGED: partial(few_flagged, captions),
        DUPLICATES: partial(few_duplicates, captions),
        LENGTH: partial(usual_length, captions, earlier_means),
        CACHE_HITS: partial(prefix_cache_hits, stored.file_metadata),
        **{adds_check(name): partial(adds_to, name, before, captions) for name, before in needed.items()},
    }
    return [run[check]() for check in checks_of(graph, stage)]


def rows_complete(stored: StoredTable, manifest: Sequence[ManifestRow]) -> Finding:
    """Check that the table has exactly the manifest's rows, in order."""
    expected, found = [row.key for row in manifest], [row.key for row in stored.rows]
    missing, extra = set(expected) - set(found), set(found) - set(expected)
    metadata = {"rows": len(found), "manifest_rows": len(expected), "missing": len(missing), "too_many": len(extra)}
    if found == expected:
        return Finding(ROWS_COMPLETE, True, f"all {len(expected)} rows of the manifest, in order", metadata)
    return Finding(
        ROWS_COMPLETE,
        False,
        f"{stored.table} has {len(found)} rows, the manifest has {len(expected)} ({len(missing)} missing, {len(extra)} "
        "too many, or in another order): materialize it again",
        metadata,
    )


def schema_known(stored: StoredTable, columns: CaptionColumns) -> Finding:
    """Check that the table's columns and schema version are those that this release writes for its stage."""
    known, found = published_schema(stored.table, columns), stored.schema
    version = stored.file_metadata.get("schema_version", "none")
    # Earlier releases wrote no shard and previous texts, and the same fingerprints in another column, which is read.
    former = {FORMER_UPSTREAM, UPSTREAM} if FORMER_UPSTREAM in found.names else set()
    former |= {SHARD.name, PREVIOUS} - {*found.names}
    names = {*known.names, *found.names} - former
    both = {*known.names} & {*found.names}
    other = sorted(name for name in names if name not in both or not found.field(name).equals(known.field(name)))
    metadata: CheckMetadata = {
        "schema_version": version,
        "columns": len(found.names),
        "other_columns": ", ".join(other),
    }
    if version == SCHEMA_VERSION and not other:
        return Finding(SCHEMA, True, f"version {version}, {len(found.names)} columns", metadata)
    differing = f", and these columns differ: {', '.join(other)}" if other else ""
    return Finding(
        SCHEMA,
        False,
        f"{stored.table} has schema version {version}; this release writes version {SCHEMA_VERSION}{differing}: "
        "materialize it again",
        metadata,
    )


def few_failed(stored: StoredTable, limits: FailureLimits) -> Finding:
    """Check the number of failed windows. Unreadable clips do not count; the manifest has a limit for them."""
    found = Failures.of_captions(stored.rows)
    metadata: CheckMetadata = {
        "failed": found.failed,
        "fraction": round(found.fraction, 4),
        "limit": round(limits.failed.allowed_fraction(found.total), 4),
    }
    if (message := limits.too_many(stored.table, found)) is None:
        return Finding(FAILED, True, f"{found.failed} of {found.total} windows failed", metadata)
    return Finding(FAILED, False, message, {**metadata, "example": shorten(found.first)})


def few_truncated(captions: Sequence[Caption]) -> Finding:
    """Check the share of captions that reached the output limit."""
    truncated = [caption for caption in captions if caption.row.finish_reason == "length"]
    return _few(
        TRUNCATED,
        truncated,
        captions,
        MAX_TRUNCATED,
        "were cut off at the output limit",
        "read them in the gallery, and raise CAPTION_MAX_OUTPUT_TOKENS or the stage's max_output_tokens",
    )


def few_flagged(captions: Sequence[Caption]) -> Finding:
    """Check the share of captions with quality flags."""
    flagged = [caption for caption in captions if caption.row.flags]
    kinds = Counter(flag for caption in flagged for flag in caption.row.flags)
    return _few(
        FLAGGED,
        flagged,
        captions,
        MAX_FLAGGED,
        "have quality flags",
        "filter the gallery by flag; the prompt or the model may not suit the clips",
        {f"flag_{flag}": count for flag, count in kinds.most_common()},
    )


def few_duplicates(captions: Sequence[Caption]) -> Finding:
    """Check the share of captions that repeat another clip's. The first of several equal captions does not count."""
    groups: dict[str, dict[str, Caption]] = defaultdict(dict)
    for caption in captions:
        groups[" ".join(caption.words)].setdefault(caption.row.clip_key, caption)
    repeated = [caption for clips in groups.values() for caption in list(clips.values())[1:]]
    largest = max(map(len, groups.values()), default=0)
    return _few(
        DUPLICATES,
        repeated,
        captions,
        MAX_DUPLICATES,
        "repeat another clip's caption",
        "check whether the clips are copies or the model repeats itself",
        {"most_clips_with_one_caption": largest},
    )


def usual_length(captions: Sequence[Caption], earlier: Sequence[float]) -> Finding:
    """Check the mean number of words against those of earlier shards."""
    words = mean_words(captions)
    metadata: dict[str, int | float | str] = {"earlier_shards": len(earlier)}
    if words is None:
        return Finding(LENGTH, True, "the table has no captions", metadata)
    metadata["mean_words"] = round(words, 2)
    if len(earlier) < MIN_EARLIER_SHARDS:
        return Finding(
            LENGTH,
            True,
            f"mean {words:.1f} words; {len(earlier)} earlier shards are too few to compare with (minimum "
            f"{MIN_EARLIER_SHARDS})",
            metadata,
        )
    usual, deviation = fmean(earlier), stdev(earlier)
    allowed = max(SIGMAS * deviation, MIN_DEVIATION * usual)
    metadata |= {"earlier_mean": round(usual, 2), "earlier_deviation": round(deviation, 2), "limit": round(allowed, 2)}
    compared = f"mean {words:.1f} words; {len(earlier)} earlier shards have {usual:.1f} ± {allowed:.1f}"
    if abs(words - usual) <= allowed:
        return Finding(LENGTH, True, compared, metadata)
    return Finding(
        LENGTH,
        False,
        f"{compared}: check whether the clips differ from earlier ones, or the captions are wrong",
        metadata,
    )


def adds_to(needed: str, texts: Sequence[Caption], captions: Sequence[Caption]) -> Finding:
    """Check the share of captions that equal the text that they need, of the stage ``needed``, or are much shorter."""
    before = {caption.row.key: caption.words for caption in texts}
    both = [caption for caption in captions if caption.row.key in before]
    equal = [caption for caption in both if caption.words == before[caption.row.key]]
    shorter = [caption for caption in both if len(caption.words) < MIN_LENGTH * len(before[caption.row.key])]
    return _few(
        adds_check(needed),
        [*equal, *shorter],
        both,
        MAX_ADDING_NOTHING,
        f"add nothing to {needed}",
        "revise the prompt",
        {"equal": len(equal), "shorter": len(shorter)},
    )


def prefix_cache_hits(file_metadata: Mapping[str, str]) -> Finding:
    """Check the prefix-cache hits of the run that wrote a table, given its file metadata."""
    hits = CacheHits.from_file_metadata(file_metadata)
    if not hits.predicted:
        return Finding(CACHE_HITS, True, "no window was captioned after an earlier stage by one engine")
    counts: CheckMetadata = {
        "cached_tokens": hits.cached,
        "predicted_tokens": hits.predicted,
        "fraction": round(hits.share, 4),
        "limit": MIN_SHARE,
    }
    return Finding(CACHE_HITS, not hits.is_low, hits.summary, counts)


def weights_verified(manifests: Sequence[WeightsManifest], damaged: Mapping[str, str]) -> Finding:
    """Check the mirrored files against their manifests; ``damaged`` maps a damaged file's path to the reason."""
    files, size = sum(len(manifest.files) for manifest in manifests), sum(manifest.size for manifest in manifests)
    metadata: CheckMetadata = {"files": files, "bytes": size, "damaged": len(damaged)}
    if not damaged:
        return Finding(WEIGHTS_VERIFIED, True, f"{files} files, {format_size(size)}: all hashes match", metadata)
    path, reason = next(iter(damaged.items()))
    return Finding(
        WEIGHTS_VERIFIED,
        False,
        f"{len(damaged)} of {files} files do not match the manifest; the first: {path}: {reason}. "
        "Set CAPTION_VERIFY_WEIGHTS=true and materialize model_weights, which repairs the mirror",
        {**metadata, "example": path},
    )


def _few(
    check: Check,
    found: Sequence[Caption],
    captions: Sequence[Caption],
    limit: float,
    what: str,
    remedy: str,
    more: CheckMetadata | None = None,
) -> Finding:
    """Check that a share of the captions is within its limit; if not, the first one found is the example."""
    fraction = len(found) / len(captions) if captions else 0.0
    metadata = {"count": len(found), "fraction": round(fraction, 4), "limit": limit, **(more or {})}
    message = f"{len(found)} of {len(captions)} captions {what}"
    if fraction <= limit:
        return Finding(check, True, message, metadata)
    metadata["example"] = shorten(f"{found[0].row.clip_key}: {found[0].row.caption}")
    return Finding(check, False, f"{message}, more than {limit:.0%}: {remedy}", metadata)


def shorten(text: str) -> str:
    """A text of at most ``EXAMPLE_CHARACTERS``, for metadata."""
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[: EXAMPLE_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
