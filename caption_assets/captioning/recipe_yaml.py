"""Recipe files as YAML documents, with the line of each value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from caption_assets.errors import CaptionAssetsError

Loc = Sequence[str | int]
"""A place in a file: keys of mappings and numbers of items."""


class RecipeError(CaptionAssetsError):
    """An invalid recipe file, with the line of the problem."""


class _Loader(yaml.SafeLoader):
    """A loader of YAML 1.2's types, in which ``yes``, ``no``, ``1:30`` and ``2026-01-01`` are words.

    Aliases are refused, because a few of them can stand for gigabytes, and so are keys that occur twice.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's, not shared

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor} is not supported: repeat the text", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, whose keys differ."""
        found: dict[Any, Any] = {}
        for key, value in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, list | dict):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping: put text in braces or brackets in quotes", key.start_mark
                )
            if name in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} occurs twice: remove one", key.start_mark
                )
            found[name] = self.construct_object(value, deep=deep)
        return found


for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=e))(e[-+]?[0-9]+)?|\.inf)|\.nan",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_HINTS = {
    "could not determine a constructor": "remove the tag, which begins with '!'",
    "mapping values are not allowed here": "put a text that contains ': ' in quotes, or below its key after '>-'",
    "cannot start any token": "indent with spaces, and put a text that begins with a special character in quotes",
    "expected ',' or": "put a text inside braces or brackets in quotes, and close them",
    "but found '<scalar>'": "put a text that begins with a brace or a quote in quotes, or below its key after '>-'",
}
"""Remedies, by a part of PyYAML's message."""


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a YAML document."""

    values: Any
    _node: yaml.Node | None

    def line(self, loc: Loc) -> int:
        """The line of a place, from 1; that of the nearest place above it if it does not exist."""
        node = self._node
        line = node.start_mark.line + 1 if node else 1
        for part in loc:
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
                if found is None:
                    return line
                key, node = found
                line = key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                return line
        return line


def parse_yaml(text: str, place: str) -> Document:
    """Parse a document.

    Args:
        text: the content of the file.
        place: the file, for messages.

    Raises:
        RecipeError: if it is not valid YAML.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Document(loader.construct_document(node) if node else None, node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        hint = next((f": {hint}" for part, hint in _HINTS.items() if part in str(error.problem)), "")
        raise RecipeError(f"{place}:{line}: not valid YAML: {error.problem}{hint}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{place}:{line}: YAML allows no control characters such as U+{error.character:04X}: remove it"
        ) from error
    except RecursionError:
        raise RecipeError(f"{place}: nested too deeply: remove brackets, braces or levels") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{place}: not valid YAML: {error}") from error
