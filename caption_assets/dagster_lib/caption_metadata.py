"""Metadata of a caption table's materialization: counts, rates, costs, failures and sample captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from caption_assets.captioning.open_shard import Published, PublishedTable
from caption_assets.captioning.window_job import DECODE, STORE
from caption_assets.checks.stored_tables import StoredTable, count_flagged
from caption_assets.dagster_lib.engine_time import EngineTime
from caption_assets.dagster_lib.metadata import MEAN_WORDS, ROW_COUNT, Metadata, markdown_table, shortened
from caption_assets.dagster_lib.recipe_metadata import RECIPE_MEANINGS, recipe_changes_metadata, recipe_metadata
from caption_assets.dagster_lib.status_metadata import PARTITION_MEANINGS
from caption_assets.report.shard_summary import Spending
from caption_assets.store.tables import CaptionRow, Status

SAMPLE_ROWS = 3
"""Maximum number of captions in the UI. The gallery has all of them."""
SHOWN_KINDS = 8
"""Maximum number of error kinds in the UI, the most frequent first."""

MEANINGS = {
    **RECIPE_MEANINGS,
    "shards_captioned": "Number of registered shards with captions of this stage, after this one",
    "shards_registered": "Number of registered shards, when this run recorded its first one",
    "rows_ok": "Number of rows with a caption",
    "rows_failed": "Number of rows without a caption, including unreadable clips",
    "rows_reused": "Number of rows that this run reused from an earlier run",
    "rows_new": "Number of rows that this run captioned",
    "truncated": "Number of captions that reached their output limit and were cut off",
    "flagged": "Number of rows with quality flags, such as repetition or refusal",
    "reduced": "Number of rows whose windows were reduced to fewer or smaller frames, to fit the model's context",
    "prompt_tokens": "Number of prompt tokens in all rows, including those of the video",
    "cached_tokens": "Number of prompt tokens that came from the engine's prefix cache",
    "output_tokens": "Number of tokens in all answers",
    "engine_seconds": "Engine time of this table, in seconds; the first shard's includes the start-up",
    "engine_start_seconds": "Start-up time of the engine, including the download of the weights, in seconds",
    "clips_per_second": "Number of newly captioned clips per second of engine time",
    "tokens_per_second": "Number of prompt and output tokens of new rows per second of engine time",
    "time_shares": "Shares of decoding, engine and storage in the shard's processing time",
    "gpu_seconds": "Engine time multiplied by the number of GPUs, in seconds",
    "cost": "GPU time multiplied by CAPTION_GPU_HOUR_PRICE, in the currency of that price",
    MEAN_WORDS: "Mean number of words in a caption",
    "errors_by_kind": "Number of failed rows by kind of error, with an example of each",
    "captions": f"{SAMPLE_ROWS} rows with their captions; failed rows come first",
    "gallery": "Page with the previews and captions of all windows",
    "path": "Path of the Parquet file",
    **PARTITION_MEANINGS,
}
"""Meaning of each metadata entry."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The time that a shard took, and the price of that time."""

    shard: Published
    engine: EngineTime
    gpus: int
    """Number of GPUs that the engine uses; 0 on a CPU."""
    gpu_hour_price: float | None
    """Price of one GPU hour, in any currency."""

    @property
    def spending(self) -> Spending:
        """The shard's engine time and its price."""
        return self._spending(self.engine.seconds)

    def of_table(self, table: str) -> Spending:
        """The part of one table, by its share of the engine's work."""
        return self._spending(self.engine.seconds * self.shard.seconds.get(table, 0.0) / self.shard.engine_seconds)

    def _spending(self, engine_seconds: float) -> Spending:
        gpu_seconds = engine_seconds * self.gpus
        price = self.gpu_hour_price if self.gpus else None
        return Spending(engine_seconds, gpu_seconds, None if price is None else gpu_seconds / 3600 * price)


def caption_metadata(stored: StoredTable, published: PublishedTable, cost: Cost) -> Metadata:
    """The metadata of a table that was just published."""
    rows = stored.rows
    statuses = Counter(row.status for row in rows)
    words = stored.mean_words
    return {
        ROW_COUNT: len(rows),
        "rows_ok": statuses[Status.OK],
        "rows_failed": statuses[Status.FAILED],
        "rows_reused": published.reused,
        "rows_new": sum(row.fingerprint is not None for row in rows) - published.reused,
        "truncated": sum(row.finish_reason == "length" for row in rows),
        "flagged": count_flagged(rows),
        "reduced": sum(bool(row.reductions) for row in rows),
        "prompt_tokens": sum(row.prompt_tokens or 0 for row in rows),
        "cached_tokens": sum(row.cached_tokens or 0 for row in rows),
        "output_tokens": sum(row.output_tokens or 0 for row in rows),
        **engine_costs(stored.table, published, cost),
        **({} if words is None else {MEAN_WORDS: round(words, 2)}),
        **_failures(rows),
        "captions": markdown_table(["clip", "window", "caption"], _sample(rows)),
        **recipe_metadata(stored.file_metadata),
        **recipe_changes_metadata(published.former, stored.file_metadata),
    }


def engine_costs(table: str, published: PublishedTable, cost: Cost) -> Metadata:
    """Rates and costs of the rows that were made in this run; empty if the engine made none."""
    engine = cost.shard.engine_seconds
    decode, own, store = (cost.shard.seconds.get(name, 0.0) for name in (DECODE, table, STORE))
    if cost.engine.start_seconds is None or not own:
        return {}
    spent = cost.of_table(table)
    seconds = spent.engine_seconds
    worked = decode + engine + store
    new = published.fresh
    costs: Metadata = {
        "engine_seconds": round(seconds, 2),
        "engine_start_seconds": round(cost.engine.start_seconds, 1),
        "clips_per_second": round(len({row.clip_key for row in new}) / seconds, 2),
        "tokens_per_second": round(sum((row.prompt_tokens or 0) + (row.output_tokens or 0) for row in new) / seconds),
        "time_shares": dg.MetadataValue.json(
            {
                "decode": round(decode / worked, 3),
                "engine": round(engine / worked, 3),
                "store": round(store / worked, 3),
            }
        ),
    }
    if cost.gpus:
        costs["gpu_seconds"] = round(spent.gpu_seconds, 1)
    if spent.cost is not None:
        costs["cost"] = round(spent.cost, 4)
    return costs


def _failures(rows: Sequence[CaptionRow]) -> Metadata:
    """Number of failed rows by kind of error, with an example of each; empty if no row failed."""
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
    """Clip, window and caption of the first rows; failed rows come first."""
    for row in sorted(rows, key=lambda row: row.status is Status.OK)[:SAMPLE_ROWS]:
        window = "" if row.window_index is None else str(row.window_index)
        text = f"{row.error_kind}: {row.error}" if row.caption is None else row.caption
        yield [row.clip_key, window, shortened(text)]
