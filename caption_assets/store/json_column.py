"""Arrow columns for JSON values: the type that a JSON Schema gives, and the conversion of each value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MAX_INT = 2**63 - 1
MIN_INT = -(2**63)
_LOCAL = "#/"
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class JsonColumn:
    """A column of values that a JSON Schema describes."""

    type: pa.DataType
    convert: Convert
    """Converts a parsed value. A value that the type cannot hold becomes None."""

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> JsonColumn:
        """The column of a JSON Schema.

        Objects with properties become structs, arrays with one schema for all items become lists. What Arrow cannot
        type becomes a string with the JSON text: unions, tuples, recursive schemas, objects with arbitrary keys. A
        struct drops keys that are not in the schema.
        """
        return _column(schema, schema, ())


def _column(schema: object, root: Mapping[str, Any], seen: tuple[str, ...]) -> JsonColumn:
    if not isinstance(schema, Mapping):
        return _TEXT
    if isinstance(ref := schema.get("$ref"), str):
        found = None if ref in seen else resolve_reference(ref, root)
        return _TEXT if found is None else _column(found, root, (*seen, ref))
    branches = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(branches, list):
        others = [branch for branch in branches if branch != {"type": "null"}]
        return _column(others[0], root, seen) if len(others) == 1 else _TEXT
    match _kind(schema):
        case "object":
            return _struct(schema, root, seen)
        case "array" if isinstance(items := schema.get("items"), Mapping) and "prefixItems" not in schema:
            return _list(_column(items, root, seen))
        case str(kind) if kind in _SCALARS:
            return _SCALARS[kind]
        case _:
            return _TEXT


def _kind(schema: Mapping[str, Any]) -> str | None:
    """The type of all values except null; None if there are several."""
    kinds = schema.get("type")
    if kinds is None:
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        kinds = [_kind_of(value) for value in values]
    kinds = set(kinds if isinstance(kinds, list) else [kinds]) - {"null"}
    if kinds == {"integer", "number"}:
        return "number"
    return kinds.pop() if len(kinds) == 1 else None


def _kind_of(value: object) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", list: "array"}
    return kinds.get(type(value), "object")


def resolve_reference(ref: str, root: Mapping[str, Any]) -> object | None:
    """The schema of a local reference, as pydantic writes them; None for any other."""
    found: Any = root
    for part in ref.removeprefix(_LOCAL).split("/") if ref.startswith(_LOCAL) else ():
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return None if found is root else found


def _struct(schema: Mapping[str, Any], root: Mapping[str, Any], seen: tuple[str, ...]) -> JsonColumn:
    properties = schema.get("properties")
    has_other_keys = schema.get("patternProperties") or schema.get("additionalProperties", False) is not False
    if not isinstance(properties, Mapping) or not properties or has_other_keys:
        return _TEXT
    members = {str(name): _column(member, root, seen) for name, member in properties.items()}

    def convert(value: Any) -> dict[str, Any] | None:
        if not isinstance(value, Mapping):
            return None
        return {name: member.convert(value.get(name)) for name, member in members.items()}

    return JsonColumn(pa.struct([(name, member.type) for name, member in members.items()]), convert)


def _list(items: JsonColumn) -> JsonColumn:
    def convert(value: Any) -> list[Any] | None:
        return [items.convert(item) for item in value] if isinstance(value, list) else None

    return JsonColumn(pa.list_(items.type), convert)


def _integer(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if _kind_of(value) == "integer" and MIN_INT <= value <= MAX_INT else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _string(value: Any) -> str | None:
    """The string; surrogates without their other half, which JSON can escape, become replacement characters."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json_text(value: Any) -> str | None:
    if value is None:
        return None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN, or a number beyond the limits of a float
        return None
    return json.dumps(value) if _SURROGATE.search(text) else text  # Arrow's strings are UTF-8, which has none


_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXT = JsonColumn(pa.string(), _json_text)
_SCALARS = {
    "string": JsonColumn(pa.string(), _string),
    "integer": JsonColumn(pa.int64(), _integer),
    "number": JsonColumn(pa.float64(), _number),
    "boolean": JsonColumn(pa.bool_(), lambda value: value if isinstance(value, bool) else None),
}
