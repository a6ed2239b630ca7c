"""The output of a stage: free text, JSON of a schema, or one of several choices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caption_assets.captioning.json_schema import check_schema


@dataclass(frozen=True, slots=True)
class TextOutput:
    """An answer in free text."""


@dataclass(frozen=True, slots=True)
class JsonOutput:
    """A JSON value that a schema describes.

    Raises:
        SchemaError: if the schema is invalid.
    """

    schema: Mapping[str, Any]
    """JSON Schema; vLLM's structured outputs constrain the answer to it."""

    def __post_init__(self) -> None:
        check_schema(self.schema)

    @property
    def label(self) -> str:
        """The output in messages."""
        return "JSON"


@dataclass(frozen=True, slots=True)
class ChoiceOutput:
    """One of several words. Each is one token, so that one step of the model gives the probability of each.

    Raises:
        ValueError: if there are fewer than two choices, two are equal, or the score's is not one of them.
    """

    choices: tuple[str, ...]
    score: str | None = None
    """The choice whose probability is the row's score, as in VQAScore (arXiv 2404.01291)."""

    def __post_init__(self) -> None:
        if len(self.choices) < 2:
            raise ValueError(f"the number of choices is {len(self.choices)}: give at least two")
        if repeated := [choice for choice in self.choices if self.choices.count(choice) > 1]:
            raise ValueError(f"the choice {repeated[0]!r} is there more than once: remove one")
        if self.score is not None and self.score not in self.choices:
            raise ValueError(f"the score is {self.score!r}: name one of the choices {', '.join(self.choices)}")

    @property
    def label(self) -> str:
        """The output in messages."""
        return "a choice"


Output = TextOutput | JsonOutput | ChoiceOutput
TEXT = TextOutput()


def output_identity(output: Output) -> dict[str, object]:
    """The values by which an output changes a table; none for text, which earlier releases did not hash."""
    if isinstance(output, ChoiceOutput):
        return {"output": {"choices": list(output.choices), "score": output.score}}
    return answer_identity(output)


def answer_identity(output: Output) -> dict[str, object]:
    """The values by which an output changes an answer. The score of a choice is computed from stored probabilities."""
    match output:
        case TextOutput():
            return {}
        case JsonOutput():
            return {"output": {"json": dict(output.schema)}}
        case ChoiceOutput():
            return {"output": {"choices": list(output.choices)}}


def readable_text(output: Output, answer: str) -> str | None:
    """The text of an answer whose quality can be judged: for JSON its strings, for a choice None."""
    match output:
        case TextOutput():
            return answer
        case JsonOutput():
            return json_text(answer)
        case ChoiceOutput():
            return None


def json_text(answer: str) -> str:
    """The strings in JSON, one a line, without the keys of objects."""
    return "\n".join(_strings(json.loads(answer)))


def _strings(value: object) -> Iterator[str]:
    """The strings in a JSON value, without the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _strings(member)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
