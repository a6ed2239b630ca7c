"""Column maps: the columns of a trainer, each made from a column of the dataset, a constant or further columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from caption_assets.errors import CaptionAssetsError
from caption_assets.export.columns import VIDEO_COLUMNS, Column, Feature

ColumnMap = Mapping[str, Any]
"""By the name of the trainer's column: a column's name, ``{"const": value}``, or a map of the parts of an object."""
CONSTANT = "const"
_OF_FILES = frozenset(column.name for column in VIDEO_COLUMNS)
_TYPES = {bool: "bool", int: "int64", float: "float64", str: "string"}


class UnknownColumn(CaptionAssetsError):
    """A column map with a column that the dataset does not have."""


def check_columns(columns: ColumnMap, known: Collection[str]) -> None:
    """Check the names in a column map.

    Raises:
        UnknownColumn: if one is not among ``known``.
        CaptionAssetsError: if a value is neither a name nor an object.
    """
    for name, source in columns.items():
        if isinstance(source, str):
            if source not in known:
                if source in _OF_FILES:
                    raise UnknownColumn(
                        f"Column {source!r} for {name!r} in CAPTION_EXPORT_COLUMNS describes the file of a window, but "
                        "windows are not cut: set CAPTION_EXPORT_CUT=exact"
                    )
                near = get_close_matches(source, known, n=3)
                meant = f"did you mean {' or '.join(near)}?" if near else "see docs/how-to/export.md for the columns"
                raise UnknownColumn(f"Unknown column {source!r} for {name!r} in CAPTION_EXPORT_COLUMNS; {meant}")
        elif not isinstance(source, Mapping):
            raise CaptionAssetsError(
                f'CAPTION_EXPORT_COLUMNS has {source!r} for {name!r}: give the name of a column, or {{"{CONSTANT}": '
                f"{source!r}}} for a constant"
            )
        elif not _is_constant(source):
            check_columns(source, known)


def names_in(columns: ColumnMap) -> Iterable[str]:
    """The dataset's columns in a column map."""
    for source in columns.values():
        if isinstance(source, str):
            yield source
        elif not _is_constant(source):
            yield from names_in(source)


def map_record(columns: ColumnMap, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the trainer's columns."""
    return {name: _value(source, record) for name, source in columns.items()}


def map_features(columns: ColumnMap, known: Mapping[str, Column]) -> list[Feature]:
    """The types of the trainer's columns, for the front matter of the card."""
    return [{"name": name, **_feature(source, known)} for name, source in columns.items()]


def _value(source: Any, record: Mapping[str, Any]) -> Any:
    if isinstance(source, str):
        return record[source]
    return source[CONSTANT] if _is_constant(source) else map_record(source, record)


def _feature(source: Any, known: Mapping[str, Column]) -> Feature:
    if isinstance(source, str):
        return {key: value for key, value in known[source].feature.items() if key != "name"}
    if _is_constant(source):
        return {"dtype": _TYPES.get(type(source[CONSTANT]), "string")}
    return {"struct": map_features(source, known)}


def _is_constant(source: Mapping[str, Any]) -> bool:
    return set(source) == {CONSTANT}
