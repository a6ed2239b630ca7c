"""Checks of the exported texts of a shard."""

from __future__ import annotations

from collections.abc import Mapping

from caption_assets.checks.asset_checks import Check, Finding, Severity

MAX_OVER_LIMIT = 0.05
"""Maximum share of texts over the trainer's limit: it ignores their ends. A few are with any prompt; if more are, the
prompt asks for too much."""

OVER_LIMIT = Check(
    "tokens_within_limit",
    Severity.WARN,
    f"At most {MAX_OVER_LIMIT:.0%} of the texts have more tokens than the trainer's limit.",
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
