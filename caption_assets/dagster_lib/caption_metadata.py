"""The metadata of a caption table in the UI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from caption_assets.captioning.open_shard import PublishedTable
from caption_assets.captioning.stages import STAGE2
from caption_assets.captioning.task import StageSeconds
from caption_assets.checks.findings import Looked, mean_words
from caption_assets.dagster_lib.check_events import MEAN_WORDS
from caption_assets.dagster_lib.columns import ROW_COUNT
from caption_assets.dagster_lib.engine_time import EngineTime
from caption_assets.dagster_lib.markdown import markdown_table, shortened
from caption_assets.store.tables import CaptionRow, Status

SAMPLE_ROWS = 3
"""Captions that the UI shows; the gallery has all, with plots of their lengths and failures."""
SHOWN_KINDS = 8
"""Kinds of errors that the UI shows, the most frequent first."""

Metadata = dict[str, dg.MetadataValue | int | float | str]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a shard took."""

    spent: StageSeconds
    engine: EngineTime
    gpus: int
    """That the engine is spread over; 0 on a CPU."""
    gpu_hour_price: float | None
    """In whatever currency the user counts."""


def caption_metadata(looked: Looked, published: PublishedTable, cost: Cost) -> Metadata:
    """Counts, rates, costs, failures and some captions of a table."""
    rows = published.rows
    statuses = Counter(row.status for row in rows)
    return {
        ROW_COUNT: len(rows),
        "rows_ok": statuses[Status.OK],
        "rows_failed": statuses[Status.FAILED],
        "rows_reused": published.reused,
        "rows_new": sum(row.fingerprint is not None for row in rows) - published.reused,
        "truncated": sum(row.finish_reason == "length" for row in rows),
        "flagged": sum(bool(row.flags) for row in rows),
        "reduced": sum(bool(row.reductions) for row in rows),
        "prompt_tokens": sum(row.prompt_tokens or 0 for row in rows),
        "cached_tokens": sum(row.cached_tokens or 0 for row in rows),
        "output_tokens": sum(row.output_tokens or 0 for row in rows),
        **engine_costs(looked.table, published, cost),
        **_lengths(looked),
        **_failures(rows),
        "captions": markdown_table(["clip", "window", "caption"], _sample(rows)),
    }


def engine_costs(table: str, published: PublishedTable, cost: Cost) -> Metadata:
    """Rates and costs of what was made anew; where nothing was, there are none."""
    spent, engine = cost.spent, cost.spent.stage1 + cost.spent.stage2
    mine = spent.stage2 if table == STAGE2.name else spent.stage1
    if cost.engine.start_seconds is None or not mine:
        return {}
    seconds = cost.engine.seconds * mine / engine
    worked = spent.decode + engine + spent.store
    new = published.fresh
    costs: Metadata = {
        "engine_seconds": round(seconds, 2),
        "engine_start_seconds": round(cost.engine.start_seconds, 1),
        "clips_per_second": round(len({row.clip_key for row in new}) / seconds, 2),
        "tokens_per_second": round(sum((row.prompt_tokens or 0) + (row.output_tokens or 0) for row in new) / seconds),
        "time_shares": dg.MetadataValue.json(
            {
                "decode": round(spent.decode / worked, 3),
                "engine": round(engine / worked, 3),
                "store": round(spent.store / worked, 3),
            }
        ),
    }
    if cost.gpus:
        costs["gpu_seconds"] = round(seconds * cost.gpus, 1)
        if cost.gpu_hour_price is not None:
            costs["cost"] = round(seconds * cost.gpus / 3600 * cost.gpu_hour_price, 4)
    return costs


def _lengths(looked: Looked) -> Metadata:
    words = mean_words(looked.said)
    return {} if words is None else {MEAN_WORDS: round(words, 2)}


def _failures(rows: Sequence[CaptionRow]) -> Metadata:
    """What went wrong how often, with an example each; nothing where nothing did."""
    kinds = Counter(row.error_kind or "" for row in rows if row.status is Status.FAILED)
    if not kinds:
        return {}
    first = {row.error_kind or "": row for row in reversed(rows) if row.status is Status.FAILED}
    examples = (
        [kind, str(count), first[kind].clip_key, shortened(first[kind].error or "")]
        for kind, count in kinds.most_common(SHOWN_KINDS)
    )
    return {"errors_by_kind": markdown_table(["kind", "rows", "for example", "reason"], examples)}


def _sample(rows: Sequence[CaptionRow]) -> Iterator[list[str]]:
    """Some captions, failures first: they are what one wants to see."""
    for row in sorted(rows, key=lambda row: row.status is Status.OK)[:SAMPLE_ROWS]:
        window = "" if row.window_index is None else str(row.window_index)
        said = f"{row.error_kind}: {row.error}" if row.caption is None else row.caption
        yield [row.clip_key, window, shortened(said)]
