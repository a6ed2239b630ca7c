"""The Arrow schema of a table, derived from the annotations of its row dataclass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

ARROW_TYPES: Mapping[type, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int32(),
    float: pa.float64(),
}
"""Column type by annotation; an annotation such as ``Annotated[int, pa.int64()]`` gives another type."""


def row_schema(kind: type[Any]) -> pa.Schema:
    """The columns of a row dataclass, in the order of its fields.

    The columns of optional fields and of sequences are nullable. Types are those of ``ARROW_TYPES``; the column of an
    enum of strings is a string column, and that of a sequence is a list column.

    Raises:
        TypeError: if an annotation has no column type.
    """
    hints = get_type_hints(kind, include_extras=True)
    return pa.schema([_column(field.name, hints[field.name]) for field in fields(kind)])


def _column(name: str, hint: Any) -> pa.Field:
    inner, is_optional = _without_none(hint)
    found = _arrow_type(inner)
    if found is None:
        raise TypeError(f"column {name}: {hint} has no Arrow type; annotate it: Annotated[..., pa.string()]")
    return pa.field(name, found, nullable=is_optional or pa.types.is_list(found))


def _without_none(hint: Any) -> tuple[Any, bool]:
    """An annotation without None, and whether it allowed None."""
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    [inner] = [part for part in get_args(hint) if part is not NoneType]
    return inner, True


def _arrow_type(hint: Any) -> pa.DataType | None:
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if isinstance(extra, pa.DataType)), None)
    if get_origin(hint) is Sequence:
        element = _arrow_type(get_args(hint)[0])
        return element and pa.list_(element)
    return pa.string() if isinstance(hint, type) and issubclass(hint, StrEnum) else ARROW_TYPES.get(hint)
