"""Tests of columns for JSON: any value that fits a schema is stored typed, or as JSON text, and can be read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.store.json_column import MAX_INT, JsonColumn

pytestmark = pytest.mark.fast

Schema = dict[str, Any]
Case = tuple[Schema, st.SearchStrategy[Any]]
"""A schema and a strategy of values that fit it."""

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS: list[Case] = [
    ({"type": "string"}, st.text()),
    ({"type": "integer"}, st.integers() | st.integers(-(2**63) - 1, 2**63)),
    ({"type": "number"}, FINITE | st.integers()),
    ({"type": ["integer", "number"]}, FINITE | st.integers()),
    ({"type": "boolean"}, st.booleans()),
    ({"type": "null"}, st.none()),
    ({"type": ["string", "null"]}, st.text() | st.none()),
    ({"type": ["string", "integer"]}, st.text() | st.integers()),
    ({"enum": ["day", "night"]}, st.sampled_from(["day", "night"])),
    ({"enum": [1, "two", None]}, st.sampled_from([1, "two", None])),
    ({"const": {"a": 1}}, st.just({"a": 1})),
]
ANYTHING: Case = (
    {},
    st.recursive(
        st.none() | st.booleans() | st.integers() | FINITE | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
)


@st.composite
def combined(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    """A case made of one or two others."""
    (one, of_one), (two, of_two) = draw(st.tuples(inner, inner))
    names = st.text(min_size=1, max_size=4)
    first, second = draw(st.lists(names, min_size=2, max_size=2, unique=True))
    both = {"type": "object", "properties": {first: one, second: two}}
    cases: list[Case] = [
        ({"type": "array", "items": one}, st.lists(of_one, max_size=3)),
        (
            {**both, "required": [first], "additionalProperties": False},
            st.fixed_dictionaries({first: of_one}, optional={second: of_two}),
        ),
        (both, st.fixed_dictionaries({}, optional={first: of_one, second: of_two})),
        (
            {**both, "additionalProperties": {"type": "integer"}},
            st.fixed_dictionaries({first: of_one, f"{first}{second}": st.integers()}),
        ),
        ({"type": "object", "additionalProperties": one}, st.dictionaries(st.text(), of_one, max_size=3)),
        ({"type": "object"}, st.just({})),
        ({"anyOf": [one, {"type": "null"}]}, of_one | st.none()),
        ({"oneOf": [one, two]}, of_one | of_two),
        ({"type": "array", "prefixItems": [one, two], "items": False}, st.tuples(of_one, of_two).map(list)),
        ({"type": "array"}, st.lists(of_two, max_size=3)),
    ]
    return draw(st.sampled_from(cases))


CASES = st.recursive(st.sampled_from([*SCALARS, ANYTHING]), combined, max_leaves=5)


def store(schema: Mapping[str, Any], values: list[Any]) -> tuple[pa.DataType, list[Any]]:
    """The values after their way into a Parquet file and back, and the type of their column."""
    column = JsonColumn.of(schema)
    table = pa.Table.from_pylist(
        [{"fields": column.convert(value)} for value in values], schema=pa.schema([("fields", column.type)])
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    stored = pq.read_table(pa.BufferReader(sink.getvalue()))
    assert stored.schema.field("fields").type == column.type
    return column.type, stored["fields"].to_pylist()


def holds(kind: pa.DataType, stored: Any, value: Any) -> bool:
    """Whether a stored value of this type is the JSON value, or null where its type cannot hold it."""
    if value is None:
        return stored is None
    if pa.types.is_struct(kind):
        assert set(value) <= {field.name for field in kind}
        return all(holds(field.type, stored[field.name], value.get(field.name)) for field in kind)
    if pa.types.is_list(kind):
        return len(stored) == len(value) and all(map(holds, [kind.value_type] * len(value), stored, value))
    if pa.types.is_integer(kind):
        return bool(stored == (value if -MAX_INT - 1 <= value <= MAX_INT else None))
    if pa.types.is_floating(kind):
        return bool(stored == value if abs(value) < 2**53 else stored is None or math.isclose(stored, value))
    if pa.types.is_boolean(kind):
        return stored is value
    return bool(stored == value or json.loads(stored) == value)


@given(st.data())
def test_value_that_fits_its_schema_is_stored_and_read_back(data: st.DataObject) -> None:
    schema, values = data.draw(CASES)
    wanted = data.draw(st.lists(values, min_size=1, max_size=3))
    parsed = json.loads(json.dumps(wanted))
    kind, stored = store(schema, parsed)
    assert all(map(holds, [kind] * len(parsed), stored, parsed)), (kind, stored, parsed)


@given(CASES, ANYTHING[1])
def test_value_that_does_not_fit_its_schema_is_stored_without_an_error(case: Case, value: Any) -> None:
    store(case[0], [value])


def test_references_are_typed_like_the_schemas_that_they_name() -> None:
    shape = {"type": "object", "properties": {"name": {"$ref": "#/$defs/name"}}}
    schema = {
        "$defs": {"shape": shape, "name": {"type": "string"}},
        "type": "object",
        "properties": {
            "one": {"$ref": "#/$defs/shape"},
            "more": {"type": "array", "items": {"$ref": "#/$defs/shape"}},
            "none": {"anyOf": [{"$ref": "#/$defs/shape"}, {"type": "null"}]},
        },
    }
    value = {"one": {"name": "a"}, "more": [{"name": "b"}, {"name": "c"}], "none": None}
    kind, stored = store(schema, [value])
    inner = pa.struct([("name", pa.string())])
    assert kind == pa.struct([("one", inner), ("more", pa.list_(inner)), ("none", inner)])
    assert stored == [value]


def test_recursive_schema_is_typed_once_and_deeper_levels_are_json_text() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}}},
        "$defs": {
            "part": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "parts": {"$ref": "#/$defs/parts"}},
            },
            "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        },
    }
    deepest = {"name": "wheel", "parts": []}
    [stored] = store(schema, [{"name": "car", "parts": [{"name": "axle", "parts": [deepest]}]}])[1]
    assert json.loads(stored["parts"][0]["parts"][0]) == deepest
    kind, [text] = store({"$ref": "#"}, [{"a": [1]}])
    assert (kind, text) == (pa.string(), '{"a": [1]}')


@pytest.mark.parametrize(
    ("schema", "text", "stored"),
    [
        ({"type": "integer"}, str(2**63 - 1), 2**63 - 1),
        ({"type": "integer"}, str(-(2**63)), -(2**63)),
        ({"type": "integer"}, str(2**63), None),
        ({"type": "integer"}, "1" * 400, None),
        ({"type": "integer"}, "1e999", None),
        ({"type": "integer"}, "3.0", 3),
        ({"type": "number"}, "1" * 400, None),
        ({"type": "number"}, "1e999", math.inf),
        ({"type": "number"}, "null", None),
        ({}, "1e999", None),
        ({}, '{"a": 1e999}', None),
        ({}, "1" * 400, "1" * 400),
        ({"type": "string"}, r'"\ud83d\ude00 \ud83d"', "\U0001f600 \N{REPLACEMENT CHARACTER}"),
        ({}, r'["\ud83d"]', r'["\ud83d"]'),
        ({}, r'["\u00e9"]', '["\u00e9"]'),
        ({"type": "string"}, r'"\u0000"', "\0"),
    ],
)
def test_extreme_value_is_stored_or_null(schema: Schema, text: str, stored: object) -> None:
    assert store(schema, [json.loads(text)])[1] == [stored]


def test_nan_is_stored_as_a_number_only() -> None:
    [number] = store({"type": "number"}, [math.nan])[1]
    assert math.isnan(number)
    assert store({}, [[math.nan]])[1] == [None]
