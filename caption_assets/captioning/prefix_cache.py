"""Prefix cache hits of later stages, compared with the number that the cache's block size predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

MIN_SHARE = 0.5
"""Minimum share of the predicted hits. A healthy engine reaches nearly all of them (98 % with the sample model)."""
KEY = "prefix_cache"
"""Key of the hits in a table's file metadata."""


@dataclass(frozen=True, slots=True)
class CacheHits:
    """Prompt tokens of later stages, over windows whose first stage the same engine answered with the same frames."""

    cached: int = 0
    """Tokens that came from the prefix cache."""
    predicted: int = 0
    """Tokens in whole blocks of the prompts' common prefix, which ends with the video."""
    is_hybrid: bool = False
    """Whether the model has hybrid attention: vLLM caches its stateful layers differently."""

    def __add__(self, other: CacheHits) -> CacheHits:
        return CacheHits(
            self.cached + other.cached, self.predicted + other.predicted, self.is_hybrid or other.is_hybrid
        )

    @property
    def share(self) -> float:
        """Share of the predicted tokens that came from the cache; 1 if none are predicted."""
        return self.cached / self.predicted if self.predicted else 1.0

    @property
    def is_low(self) -> bool:
        """Whether later stages compute most of the common prefix again."""
        return self.share < MIN_SHARE

    @property
    def summary(self) -> str:
        """The hits in words, with the reason if there are few."""
        found = f"{self.cached} of {self.predicted} predicted tokens came from the prefix cache ({self.share:.0%})"
        if not self.is_low:
            return found
        if self.is_hybrid:
            reason = (
                "the model has hybrid attention, whose prefixes vLLM rarely keeps (issues 43587 and 51198): later "
                "stages compute the video again, which takes time and changes no caption"
            )
        else:
            reason = (
                "blocks are evicted before later stages need them: give the KV cache more memory, or lower "
                "max_num_seqs in CAPTION_ENGINE_ARGS"
            )
        return f"{found}; {reason}"

    @property
    def file_metadata(self) -> dict[str, str]:
        """The hits as file metadata; empty if none are predicted."""
        if not self.predicted:
            return {}
        values = {"cached": self.cached, "predicted": self.predicted, "is_hybrid": self.is_hybrid}
        return {KEY: json.dumps(values)}

    @classmethod
    def from_file_metadata(cls, metadata: Mapping[str, str]) -> CacheHits:
        """The hits in file metadata; ``NO_HITS`` for a file without them."""
        return cls(**json.loads(metadata[KEY])) if KEY in metadata else cls()


NO_HITS = CacheHits()
