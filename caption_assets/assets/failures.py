"""How the project's own errors end a step: with their message, and without a traceback of the project's insides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from caption_assets.assets.markdown import markdown_table
from caption_assets.errors import CaptionAssetsError


@contextmanager
def clear_failures() -> Iterator[None]:
    """Turn a ``CaptionAssetsError`` into a Dagster failure that shows its message.

    What failed by itself fails again, so the step is not tried again at once; one that was ended from outside is.
    """
    try:
        yield
    except CaptionAssetsError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def shards_failed(summary: str, reasons: Mapping[str, str]) -> dg.Failure:
    """The end of a step over several shards: one event with the first reason in its text and every shard's beside it.

    What failed by itself fails again: the step is not tried again at once. The schedule does so later.
    """
    shard, first = next(iter(reasons.items()))
    others = f" (and {len(reasons) - 1} more, all in this event's table)" if len(reasons) > 1 else ""
    return dg.Failure(
        f"{summary}: {shard}: {first}{others}",
        metadata={"shards": markdown_table(["shard", "reason"], reasons.items())},
        allow_retries=False,
    )
