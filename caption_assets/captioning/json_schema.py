"""The check of a recipe's JSON Schema. It needs no engine; vLLM's own check follows when the engine starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from caption_assets.store.json_column import resolve_reference

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_ONE = frozenset(
    {"additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
"""Keywords whose value is a schema."""
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Keywords whose value is a list of schemas."""
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose value is a mapping of names to schemas."""
_LIMITS = {f"min{what}": f"max{what}" for what in ("Items", "Length", "Properties", "Contains")}
_KEYWORDS = frozenset(
    {*_ONE, *_LISTS, *_NAMED, *_LIMITS, *_LIMITS.values()}
    | {"$comment", "$id", "$ref", "$schema", "const", "default", "description", "enum", "examples", "format", "pattern"}
    | {"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf", "required", "title", "type"}
    | {"dependentRequired", "uniqueItems"}
)
Path = tuple[str | int, ...]


class SchemaError(ValueError):
    """An invalid JSON Schema.

    Args:
        path: keys and item numbers that lead to the problem.
        message: the problem and its remedy.
    """

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def check_schema(schema: object) -> None:
    """Check the structure of a JSON Schema, its local references, and the spelling of its keywords.

    Raises:
        SchemaError: if it is invalid, or refers to another document.
    """
    _check_values(schema, ())
    if not isinstance(schema, Mapping):
        raise SchemaError((), f"a JSON Schema is a mapping, not {schema!r}: write one with the key `type`")
    for path, part in _schemas(schema, ()):
        _check_schema(path, part, schema)


def _check_values(value: object, path: Path) -> None:
    """Check that all values exist in JSON."""
    if isinstance(value, Mapping):
        for name, member in value.items():
            if not isinstance(name, str):
                raise SchemaError(path, f"the key {name!r} is not a text: put it in quotes")
            _check_values(member, (*path, name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_values(item, (*path, number))
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise SchemaError(path, f"JSON has no value such as {value!r}: put it in quotes, or write a number")


def _schemas(schema: Any, path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """A schema and all schemas in it."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise SchemaError(path, f"a JSON Schema is a mapping, not {schema!r}: write one with the key `type`")
    yield path, schema
    for keyword, value in schema.items():
        here = (*path, keyword)
        if keyword in _ONE:
            yield from _schemas(value, here)
        elif keyword in _LISTS:
            if not isinstance(value, list | tuple) or not value:
                raise SchemaError(here, f"`{keyword}` needs a list of schemas: write one item a line after `- `")
            for number, item in enumerate(value):
                yield from _schemas(item, (*here, number))
        elif keyword in _NAMED:
            if not isinstance(value, Mapping):
                raise SchemaError(here, f"`{keyword}` needs a mapping of names to schemas")
            for name, member in value.items():
                yield from _schemas(member, (*here, name))


def _check_schema(path: Path, schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    """Check the keywords of one schema."""
    for keyword in schema:
        near = get_close_matches(keyword, _KEYWORDS, n=1, cutoff=0.8)
        if keyword not in _KEYWORDS and near:
            raise SchemaError((*path, keyword), f"unknown keyword `{keyword}`; did you mean `{near[0]}`?")
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list | tuple) else [kinds]:
        if kind not in TYPES:
            raise SchemaError((*path, "type"), f"the type is {kind!r}: use one of {', '.join(TYPES)}")
    if "enum" in schema and (not isinstance(schema["enum"], list | tuple) or not schema["enum"]):
        raise SchemaError((*path, "enum"), "`enum` needs a list with at least one value")
    _check_limits(path, schema)
    _check_required(path, schema)
    if "$ref" in schema:
        _check_reference((*path, "$ref"), schema["$ref"], root)


def _check_limits(path: Path, schema: Mapping[str, Any]) -> None:
    for lowest, highest in _LIMITS.items():
        for keyword in (lowest, highest):
            value = schema.get(keyword, 0)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SchemaError((*path, keyword), f"`{keyword}` is {value!r}: write a whole number, 0 or more")
        if highest in schema and schema.get(lowest, 0) > schema[highest]:
            raise SchemaError(
                (*path, lowest),
                f"`{lowest}` is {schema[lowest]}, above `{highest}`, {schema[highest]}: lower the first or raise the "
                "second",
            )


def _check_required(path: Path, schema: Mapping[str, Any]) -> None:
    names = schema.get("required", [])
    if not isinstance(names, list | tuple):
        raise SchemaError((*path, "required"), "`required` needs a list of names")
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and (missing := [name for name in names if name not in properties]):
        near = get_close_matches(str(missing[0]), list(properties), n=1)
        raise SchemaError(
            (*path, "required"),
            f"`required` names {missing[0]!r}, which is not in `properties`"
            f"{f'; did you mean {near[0]!r}?' if near else ': add it there, or remove it here'}",
        )


def _check_reference(path: Path, reference: object, root: Mapping[str, Any]) -> None:
    """Check that a reference leads to a schema of the same document, perhaps through other references."""
    followed: list[object] = []
    while reference is not None:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaError(
                path,
                f"the reference {reference!r} leads to another document, which is not loaded: put its schema under "
                "`$defs`, and write '#/$defs/<name>'",
            )
        if reference in followed:
            raise SchemaError(path, f"the reference {reference!r} leads back to itself: put a schema with `type` there")
        followed.append(reference)
        target = root if reference == "#" else resolve_reference(reference, root)
        if target is None:
            known = ", ".join(f"#/$defs/{name}" for name in root.get("$defs", {})) or "there is none under `$defs`"
            raise SchemaError(path, f"the reference {reference!r} leads nowhere: correct it ({known})")
        reference = target.get("$ref") if isinstance(target, Mapping) else None
