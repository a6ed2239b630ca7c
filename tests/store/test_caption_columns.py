"""Tests of the columns of caption tables that depend on their stage, from rows to a published table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_assets.store.caption_columns import NO_COLUMNS, CaptionColumns
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CaptionRow,
    Status,
    publish_captions,
    published_schema,
    read_captions,
    table_path,
)

pytestmark = pytest.mark.fast

FAILED = CaptionRow(
    "a.mp4", 1, "w1", 2.0, 4.0, Status.FAILED, error_kind="timeout", error="it took too long", flags=[], reductions=[]
)
OK = replace(FAILED, window_index=0, status=Status.OK, error_kind=None, error=None, caption="A dog.")
YES_NO = CaptionColumns(choices=("yes", "no"))


def publish(root: Root, columns: CaptionColumns, *rows: CaptionRow) -> pa.Table:
    """The published table."""
    publish_captions(root, "labels", "a", rows, [row.key for row in rows], {}, columns)
    return pq.read_table(root.full(table_path("labels", "a")), partitioning=None)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (NO_COLUMNS, []),
        (CaptionColumns(("short", "long")), ["upstream_fingerprints"]),
        (YES_NO, ["choice", "probability", "probabilities"]),
        (replace(YES_NO, score="yes"), ["choice", "probability", "probabilities", "score"]),
        (CaptionColumns(json_schema={"type": "array"}), ["fields"]),
    ],
)
def test_table_has_the_columns_of_its_stage_after_those_of_all(
    root: Root, columns: CaptionColumns, names: list[str]
) -> None:
    assert publish(root, columns, FAILED).column_names == [*published_schema("labels").names, *names]


def own(table: pa.Table) -> list[dict[str, Any]]:
    """The values of the columns of the stage."""
    return table.drop_columns(published_schema("labels").names).to_pylist()  # type: ignore[no-any-return]


def test_choice_is_stored_with_its_probability_and_score(root: Root) -> None:
    rows = replace(OK, caption="no", probabilities={"yes": 0.25, "no": 0.75}), FAILED
    assert own(publish(root, replace(YES_NO, score="yes"), *rows)) == [
        {"choice": "no", "probability": 0.75, "probabilities": {"yes": 0.25, "no": 0.75}, "score": 0.25},
        {"choice": None, "probability": None, "probabilities": None, "score": None},
    ]
    assert read_captions(root, "labels", "a") == list(rows)


def test_json_is_stored_as_text_and_typed(root: Root) -> None:
    schema = {"type": "object", "properties": {"people": {"type": "integer"}, "shots": {"type": "array", "items": {}}}}
    text = json.dumps({"people": 2, "shots": [{"camera": "still"}, None]})
    table = publish(root, CaptionColumns(json_schema=schema), replace(OK, caption=text), FAILED)
    assert table.schema.field("fields").type == pa.struct([("people", pa.int64()), ("shots", pa.list_(pa.string()))])
    assert own(table) == [{"fields": {"people": 2, "shots": ['{"camera": "still"}', None]}}, {"fields": None}]
    assert read_captions(root, "labels", "a") == [replace(OK, caption=text), FAILED]


def test_fingerprints_of_needed_rows_are_stored_by_stage(root: Root) -> None:
    rows = replace(OK, upstream_fingerprints={"short": "s", "long": "l"}), FAILED
    table = publish(root, CaptionColumns(("short", "long")), *rows)
    assert own(table) == [{"upstream_fingerprints": {"short": "s", "long": "l"}}, {"upstream_fingerprints": None}]
    assert read_captions(root, "labels", "a") == list(rows)
