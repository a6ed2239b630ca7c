"""The constraint of an answer to a JSON Schema: vLLM's, with a limit of the whitespace inside the JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MAX_WHITESPACE = 16
"""Maximum number of spaces and line breaks between two parts of the JSON: enough for three levels of indentation.

JSON allows any number, and a model may fill the rest of its answer with line breaks. The sample model does so with each
schema that it was not trained on.
"""


def json_constraint(schema: Mapping[str, Any], config: Any) -> Any:
    """The structured outputs of vLLM for a JSON Schema.

    Whitespace is limited where vLLM uses xgrammar, as it does by default for the schemas that xgrammar supports.

    Args:
        schema: the JSON Schema.
        config: vLLM's configuration of structured outputs.
    """
    from vllm.sampling_params import StructuredOutputsParams

    if config.backend in ("auto", "xgrammar") and not config.disable_any_whitespace:
        grammar = _grammar(json.dumps(schema))
        if grammar is not None:
            return StructuredOutputsParams(grammar=grammar)
    return StructuredOutputsParams(json=dict(schema))


@lru_cache
def _grammar(schema: str) -> str | None:
    """Xgrammar's grammar of a JSON Schema; None if it does not support the schema."""
    from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features
    from xgrammar import Grammar

    if has_xgrammar_unsupported_json_features(json.loads(schema)):
        return None
    try:
        return str(Grammar.from_json_schema(schema, max_whitespace_cnt=MAX_WHITESPACE))
    except RuntimeError:  # vLLM's own validation gives the reason
        return None
