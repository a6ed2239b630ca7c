"""Checks of the exported texts of a shard."""

from __future__ import annotations

from collections.abc import Mapping

from caption_assets.checks.asset_checks import Check, Finding, Severity, shorten

MAX_OVER_LIMIT = 0.05
"""Maximum share of texts over the trainer's limit: it ignores their ends. A few are with any prompt; if more are, the
prompt asks for too much."""

OVER_LIMIT = Check(
    "tokens_within_limit",
    Severity.WARN,
    f"At most {MAX_OVER_LIMIT:.0%} of the texts have more tokens than the trainer's limit.",
)
MAX_EQUAL = 100
"""Number of windows of the dataset that may have the same text, however small it is."""
MAX_EQUAL_SHARE = 1e-4
"""Share of the dataset's windows that may. A trainer sees such a text as often as a hundred others in 1,000,000."""

EQUAL_TEXTS = Check(
    "equal_texts",
    Severity.WARN,
    f"No text of the shard is that of more than {MAX_EQUAL} windows of the whole dataset, or of one in "
    f"{1 / MAX_EQUAL_SHARE:,.0f}, ignoring case and punctuation.",
)


def few_equal(text: str, *, windows: int, shards: int, total: int, kept: int | None) -> Finding:
    """Check how often the whole dataset has a text.

    Args:
        text: the most frequent text of the shard.
        windows: number of windows with it.
        shards: number of shards with it.
        total: number of windows of the dataset.
        kept: number of windows with one text that are kept; None for all.
    """
    limit = max(MAX_EQUAL, int(total * MAX_EQUAL_SHARE))
    metadata: dict[str, int | float | str] = {
        "windows": windows,
        "shards": shards,
        "total": total,
        "fraction": round(windows / total, 6) if total else 0.0,
        "limit": limit,
        "example": shorten(text),
    }
    message = f"{windows} of {total} windows, in {shards} shards, have the same text"
    if kept is not None:
        return Finding(EQUAL_TEXTS, True, f"{message}; about {min(kept, windows)} of them are kept", metadata)
    if windows <= limit:
        return Finding(EQUAL_TEXTS, True, message, metadata)
    return Finding(
        EQUAL_TEXTS,
        False,
        f"{message}, more than {limit}: check whether the clips are copies or the model repeats itself, or set "
        "CAPTION_EXPORT_MAX_DUPLICATES",
        metadata,
    )


def few_over_limit(tokens: Mapping[str, int]) -> Finding:
    """Check the share of texts over the trainer's limit, before they are cut, replaced or left out.

    Args:
        tokens: number of ``texts``, of those ``over_limit`` and of those ``dropped``, sum of ``tokens``, length of the
            ``longest``, and the ``limit``, if there is one.
    """
    texts = tokens["texts"] + tokens["dropped"]
    fraction = tokens["over_limit"] / texts if texts else 0.0
    metadata: dict[str, int | float | str] = {
        **tokens,
        "mean_tokens": round(tokens["tokens"] / tokens["texts"], 1) if tokens["texts"] else 0.0,
        "fraction": round(fraction, 4),
    }
    if "limit" not in tokens:
        return Finding(
            OVER_LIMIT, True, f"the tokenizer has no limit; the longest text has {tokens['longest']}", metadata
        )
    message = f"{tokens['over_limit']} of {texts} texts have more than {tokens['limit']} tokens"
    if fraction <= MAX_OVER_LIMIT:
        return Finding(OVER_LIMIT, True, message, metadata)
    return Finding(
        OVER_LIMIT,
        False,
        f"{message}, up to {tokens['longest']}: train on a stage with shorter captions, lower max_output_tokens, or "
        "set CAPTION_EXPORT_OVER_LIMIT to cut, shorter or leave_out",
        metadata,
    )
