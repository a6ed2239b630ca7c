"""Every setting of the project, from ``CAPTION_*`` environment variables, read and checked once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from caption_assets.captioning.prompts import DEFAULT_PROMPT, Prompt
from caption_assets.captioning.recipe import Generation, Recipe
from caption_assets.clips.sampling import Sampling
from caption_assets.clips.window import Windowing
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.variants import UnknownModel, Variant, variant

PREFIX = "CAPTION_"


class SettingsError(CaptionAssetsError):
    """A setting that cannot be used: the message names variable, value and remedy."""


class Settings(BaseSettings):
    """The settings, by field; the variable of ``root`` is ``CAPTION_ROOT``, and so on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    root: str = Field("data", description="Folder or `s3://bucket/prefix` for everything that is written")
    source: str | None = Field(None, description="Where the shards lie; may be read-only. Default: `<root>/shards`")
    cache: Path = Field(
        Path("~/.cache/caption-assets"), description="Folder on the engine's own disk for weights fetched from the root"
    )
    model: str = Field("sample", description="Model key: `sample`, `qwen2.5` or `qwen` (the same)")
    fp8: bool | None = Field(
        None, description="Quantise the language model to FP8. Default: as the model wants; needs a GPU"
    )
    stage1_prompt: str = Field(DEFAULT_PROMPT.stage1, description="Instruction of stage 1")
    stage2_prompt: str = Field(
        DEFAULT_PROMPT.stage2, description="Instruction of stage 2, with `{caption}` where the stage-1 caption goes"
    )
    window_size: int = Field(256, description="Source frames in a window")
    remainder_threshold: int = Field(128, description="A tail of fewer frames joins the window before it")
    sample_fps: float = Field(2.0, description="Frames a second that are shown to the model")
    min_frames: int = Field(4, description="Least frames shown of a window")
    max_frames: int = Field(768, description="Most frames shown of a window")
    temperature: float = Field(0.1, description="Sampling temperature of the answer")
    top_p: float = Field(0.001, description="Nucleus sampling of the answer")
    repetition_penalty: float = Field(1.05, description="Repetition penalty of the answer")
    max_output_tokens: int = Field(512, description="Longest answer")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="Share of the GPU's memory for the engine")
    processor_cache_gb: float = Field(4.0, ge=0, description="Memory for preprocessed videos")
    max_batched_tokens: int = Field(32768, ge=1, description="Tokens in one step of the engine")
    shards_per_run: int = Field(16, ge=1, description="Shards that a backfill captions with one engine start")
    max_failed_fraction: float = Field(
        0.05, ge=0, le=1, description="Share of a shard's captionable windows that may fail before the step fails"
    )
    max_unreadable_fraction: float = Field(
        0.1, ge=0, le=1, description="Share of a shard's clips that may be unreadable before the step fails"
    )

    @field_validator("model")
    @classmethod
    def _known_model(cls, key: str) -> str:
        try:
            variant(key)
        except UnknownModel as error:
            raise ValueError(str(error)) from None
        return key

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        self.recipe  # noqa: B018 - the parts check themselves when they are made
        self.windowing  # noqa: B018
        return self

    @property
    def source_url(self) -> str:
        """Where the shards lie."""
        return self.source or f"{self.root.rstrip('/')}/shards"

    @property
    def variant(self) -> Variant:
        """The model."""
        return variant(self.model)

    @property
    def windowing(self) -> Windowing:
        """How clips are cut."""
        return Windowing(self.window_size, self.remainder_threshold)

    @property
    def recipe(self) -> Recipe:
        """What captions are made with."""
        texts = (self.stage1_prompt, self.stage2_prompt)
        custom = texts != (DEFAULT_PROMPT.stage1, DEFAULT_PROMPT.stage2)
        return Recipe(
            variant=self.variant,
            fp8=self.variant.fp8 if self.fp8 is None else self.fp8,
            prompt=Prompt("custom", *texts) if custom else DEFAULT_PROMPT,
            frames=Sampling(self.sample_fps, self.min_frames, self.max_frames),
            generation=Generation(self.temperature, self.top_p, self.repetition_penalty, self.max_output_tokens),
        )


def load_settings() -> Settings:
    """The settings of this process's environment.

    Raises:
        SettingsError: if a variable's value cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(detail) for detail in error.errors())) from None


def _explain(detail: Any) -> str:
    """One line for one of pydantic's findings: variable, value, what is wrong."""
    problem = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return f"the settings do not fit together: {problem}"
    variable = PREFIX + str(detail["loc"][0]).upper()
    return f"{variable}={os.environ.get(variable)!r}: {problem}"
