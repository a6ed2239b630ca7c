"""The recipe of captions: model, prompt, frame sampling and sampling of the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256

from caption_assets.captioning.prompts import GENERAL, Prompt, text_hash
from caption_assets.clips.sampling import Sampling
from caption_assets.models.variants import SAMPLE, Variant
from caption_assets.store.tables import ManifestRow

DECODE_PLAN = "2"
"""Version of the way frames are chosen, decoded and resized; raised when that changes pixels."""


MOST_TEMPERATURE = 2.0
"""vLLM's limit."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How the model's answer is drawn. Defaults are the reference's (NeMo Curator).

    Raises:
        ValueError: if a value is out of its range.
    """

    temperature: float = 0.1
    top_p: float = 0.001
    repetition_penalty: float = 1.05
    max_output_tokens: int = 512
    seed: int | None = None
    """Of the deterministic mode, which draws nothing; None draws anew each time."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise ValueError(f"the temperature is {self.temperature}: give 0 to {MOST_TEMPERATURE}")
        if self.seed is not None and self.temperature > 0:
            raise ValueError(
                f"a seed needs temperature 0 (it is {self.temperature}): vLLM's CPU engine dies of a seeded draw whose "
                "prompt it reads in pieces, and on a GPU the draw depends on what else is in the batch"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a number above 0 and up to 1")
        if self.repetition_penalty <= 0:
            raise ValueError(f"the repetition penalty is {self.repetition_penalty}: give a number above 0")
        if self.max_output_tokens < 1:
            raise ValueError(f"the output limit is {self.max_output_tokens} tokens: give at least 1")


DETERMINISTIC = Generation(temperature=0.0, top_p=1.0, seed=0)
"""Always the likeliest word, so that two runs say the same."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a caption's text beside the clip itself."""

    variant: Variant = SAMPLE
    fp8: bool = False
    """Whether the language model is quantised."""
    prompt: Prompt = GENERAL
    frames: Sampling = field(default_factory=Sampling)
    generation: Generation = field(default_factory=Generation)
    regenerations: int = 1
    """How often a flagged caption is generated again."""

    def prompt_for(self, window: ManifestRow) -> Prompt:
        """The prompt of a window: its clip may bring a stage-1 text of its own."""
        return self.prompt if window.prompt is None else replace(self.prompt, name="clip", stage1=window.prompt)

    def instruction(self, stage: int) -> str:
        """The instruction of stage 1 or 2, the latter with its slot for the stage-1 caption."""
        return self.prompt.stage1 if stage == 1 else self.prompt.stage2

    def identity(self, stage: int) -> Mapping[str, object]:
        """What a caption of this stage depends on, the clip aside, as plain values."""
        variant = self.variant
        return {
            "stage": stage,
            "model": variant.hub_id,
            "revision": variant.revision,
            "fp8": self.fp8,
            "dtype": variant.dtype,
            "pixels": asdict(variant.pixels),
            "prompt": text_hash(self.instruction(stage)),
            "frames": asdict(self.frames),
            "generation": asdict(self.generation),
            "regenerations": self.regenerations,
            "decode_plan": DECODE_PLAN,
        }

    def version(self, stage: int) -> str:
        """A short hash of ``identity``: the code version of the stage's asset."""
        return _hash(self.identity(stage))[:16]

    def fingerprint(self, stage: int, window: ManifestRow, stage1_caption: str | None = None) -> str:
        """The hash of all that decides one window's caption.

        Frame indices, frame size and true fps follow from the clip's content, the window's bounds, the sampling, the
        pixel limits and the version of the decode plan, so that it is known without decoding.
        """
        return _hash(
            {
                **self.identity(stage),
                "content": window.content_tag,
                "window": [window.start_frame, window.end_frame],
                "clip_prompt": window.prompt,
                "stage1_caption": stage1_caption,
            }
        )[:32]


def _hash(values: Mapping[str, object]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
