"""The columns of a caption table that depend on its stage: upstream fingerprints, choices, and the fields of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from caption_assets.store.json_column import JsonColumn

UPSTREAM = "upstream_fingerprints"
PROBABILITIES = "probabilities"
FIELDS = "fields"
BY_STAGE = (UPSTREAM, PROBABILITIES)
"""Columns of ``CaptionRow`` whose type depends on the stage; a table has them only if its stage uses them."""
DERIVED = {
    "choice": "The most probable choice; the caption's text",
    "probability": "Probability of that choice",
    "score": "Probability of the choice that the recipe names as good",
    "fields": "The caption's JSON, typed by the schema; what Arrow cannot type is JSON text",
}
"""The columns that derive from others, with their descriptions."""


@dataclass(frozen=True, slots=True)
class CaptionColumns:
    """The columns of one stage's table, after those that all caption tables have.

    - ``upstream_fingerprints``: a struct with a field for each needed stage.
    - ``choice``, ``probability`` (of that choice), ``probabilities`` (a struct with a field for each choice) and
      ``score`` (the probability of the recipe's good choice).
    - ``fields``: the caption's JSON, typed by its schema.
    """

    needs: tuple[str, ...] = ()
    """Names of the needed stages."""
    choices: tuple[str, ...] = ()
    score: str | None = None
    """The choice whose probability is the score."""
    json_schema: Mapping[str, Any] | None = None
    """JSON Schema of the captions."""

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        columns: dict[str, pa.DataType] = {}
        if self.needs:
            columns[UPSTREAM] = pa.struct([(name, pa.string()) for name in self.needs])
        if self.choices:
            columns["choice"] = pa.string()
            columns["probability"] = pa.float64()
            columns[PROBABILITIES] = pa.struct([(choice, pa.float64()) for choice in self.choices])
        if self.score is not None:
            columns["score"] = pa.float64()
        if self.json_schema is not None:
            columns[FIELDS] = JsonColumn.of(self.json_schema).type
        return pa.schema(list(columns.items()))

    def derived(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The values that follow from the other columns of a row."""
        caption, found = record["caption"], record[PROBABILITIES]
        values: dict[str, Any] = {}
        if self.choices:
            values |= {"choice": caption, "probability": found[caption] if found else None}
        if self.score is not None:
            values["score"] = found.get(self.score) if found else None
        if self.json_schema is not None:
            convert = JsonColumn.of(self.json_schema).convert
            values[FIELDS] = None if caption is None else convert(json.loads(caption))
        return values


NO_COLUMNS = CaptionColumns()
"""A stage that answers in text and needs no other."""
