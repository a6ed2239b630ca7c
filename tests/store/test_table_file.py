"""Arrow schemas of row dataclasses, as files of tables have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_assets.store.table_file import row_schema
from caption_assets.store.tables import CLIP_MANIFEST, Status, schema_of, table_path

pytestmark = pytest.mark.fast

FIXTURE = Path(__file__).parents[1] / "fixtures" / "root_before_window_job"


def test_annotations_give_types_and_nullability() -> None:
    @dataclass
    class Row:
        name: str
        status: Status
        count: int | None
        size: Annotated[int, pa.int64()]
        shares: Sequence[float] = ()
        is_new: bool = False
        pair: Annotated[Mapping[str, int], pa.struct([("a", pa.int32())])] | None = None

    assert row_schema(Row) == pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("count", pa.int32()),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("shares", pa.list_(pa.float64())),
            pa.field("is_new", pa.bool_(), nullable=False),
            pa.field("pair", pa.struct([("a", pa.int32())])),
        ]
    )


@pytest.mark.parametrize("hint", [Mapping[str, int], Sequence[bytes], "Annotated[bytes, 'image']", complex])
def test_annotation_without_a_column_type_is_an_error(hint: object) -> None:
    row: type[Any] = dataclass(type("Row", (), {"__annotations__": {"odd": hint}, "__module__": __name__}))
    with pytest.raises(TypeError, match=r"column odd: .* has no Arrow type"):
        row_schema(row)


@pytest.mark.parametrize("table", [CLIP_MANIFEST, "stage1_captions", "stage2_captions"])
def test_columns_of_earlier_releases_keep_their_types(table: str) -> None:
    earlier = pq.read_schema(FIXTURE / table_path(table, "shard"))
    kept = [name for name in earlier.names if name != "stage1_fingerprint"]  # now one of ``upstream_fingerprints``
    assert [schema_of(table).field(name) for name in kept] == [earlier.field(name) for name in kept]
