"""Sampling parameters of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

MAX_TEMPERATURE = 2.0
"""vLLM's maximum."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of an answer. Defaults are the reference's (NeMo Curator).

    Raises:
        ValueError: if a value is out of its range.
    """

    temperature: float | None = 0.1
    """None, here and in the next two fields, is the model's own value."""
    top_p: float | None = 0.001
    repetition_penalty: float | None = 1.05
    max_output_tokens: int = 512
    seed: int | None = None
    """Seed for temperature 0; None uses a new one for each request."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"the temperature is {self.temperature}: give 0 to {MAX_TEMPERATURE}")
        if self.seed is not None and self.temperature != 0:
            raise ValueError(
                f"a seed needs temperature 0, not {self.temperature}: at other temperatures vLLM's CPU engine crashes "
                "in chunked prefill, and on a GPU the answer depends on the rest of the batch"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a number above 0 and up to 1")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise ValueError(f"the repetition penalty is {self.repetition_penalty}: give a number above 0")
        if self.max_output_tokens < 1:
            raise ValueError(f"the output limit is {self.max_output_tokens} tokens: give at least 1")

    @property
    def uses_model_defaults(self) -> bool:
        """Whether a value is the model's own."""
        return None in (self.temperature, self.top_p, self.repetition_penalty)

    def with_defaults(self, own: Mapping[str, float], others: SamplingParams) -> SamplingParams:
        """These parameters with each None replaced by the model's ``own`` value, or else by that of ``others``."""
        if not self.uses_model_defaults:
            return self
        names = ("temperature", "top_p", "repetition_penalty")
        missing = [name for name in names if getattr(self, name) is None]
        return replace(self, **{name: own.get(name, getattr(others, name)) for name in missing})


DEFAULTS = SamplingParams()
"""The reference's values, also used where a model's files give none."""
DETERMINISTIC = SamplingParams(temperature=0.0, top_p=1.0, seed=0)
"""Greedy decoding, so that two runs give the same captions."""
