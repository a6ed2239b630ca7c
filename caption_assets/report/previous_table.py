"""The previous texts of a caption table, as a table of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

from caption_assets.captioning.open_shard import STAGE_PROMPT
from caption_assets.checks.stored_tables import StoredTable
from caption_assets.store.caption_columns import FIELDS, PROBABILITIES
from caption_assets.store.tables import CaptionRow, PreviousText, Status


def previous_table(table: StoredTable) -> StoredTable:
    """The table of the previous texts, with a row for each row that has one.

    The stage may have had another output: the table is one of JSON or choices only if all previous texts are.
    """
    found = [(row, row.previous) for row in table.rows if row.previous]
    columns = list(table.schema)
    if not all(_is_json(previous.caption) for _, previous in found):
        columns = [column for column in columns if column.name != FIELDS]
    if not all(previous.probability is not None for _, previous in found):
        columns = [column for column in columns if column.name != PROBABILITIES]
    metadata = {name: value for name, value in table.file_metadata.items() if name != STAGE_PROMPT}
    rows = [_previous_row(row, previous, table.score_choice) for row, previous in found]
    return StoredTable.of(table.table, pa.schema(columns, metadata), rows)


def _is_json(caption: str) -> bool:
    """Whether a caption may be the answer of a stage with JSON."""
    try:
        json.loads(caption)
    except (ValueError, RecursionError):
        return False
    return True


def _previous_row(row: CaptionRow, previous: PreviousText, score_choice: str | None) -> CaptionRow:
    """The row of a previous text. Of its provenance it has what the text was stored with."""
    return CaptionRow(
        clip_key=row.clip_key,
        window_index=row.window_index,
        window_id=row.window_id,
        start_seconds=row.start_seconds,
        end_seconds=row.end_seconds,
        status=Status.OK,
        caption=previous.caption,
        flags=previous.flags,
        model=previous.model,
        revision=previous.revision,
        lora=previous.lora,
        lora_revision=previous.lora_revision,
        prompt_name=previous.prompt_name,
        prompt_hash=previous.prompt_hash,
        sampling=previous.sampling,
        fingerprint=previous.fingerprint,
        probabilities=_probabilities(previous, score_choice),
    )


def _probabilities(previous: PreviousText, score_choice: str | None) -> Mapping[str, float] | None:
    """The probabilities that are kept: of the choice, and of the one that counts as good."""
    if previous.probability is None:
        return None
    found = {previous.caption: previous.probability}
    if score_choice is not None and previous.score is not None:
        found[score_choice] = previous.score
    return found
