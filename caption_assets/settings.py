"""Every setting of the project, from ``CAPTION_*`` environment variables, read and checked once."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from caption_assets.captioning.prompts import DEFAULT_PROMPT, Prompt
from caption_assets.captioning.recipe import Generation, Recipe
from caption_assets.clips.sampling import FRAME_FACTOR, Sampling
from caption_assets.clips.window import MIN_WINDOW_FRAMES, Windowing
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
    window_size: int = Field(256, ge=MIN_WINDOW_FRAMES, description="Source frames in a window")
    remainder_threshold: int = Field(
        128, ge=MIN_WINDOW_FRAMES, description="A tail of fewer frames joins the window before it"
    )
    sample_fps: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="Frames of each second of a clip that are shown to the model"
    )
    min_frames: int = Field(4, ge=FRAME_FACTOR, description="Least frames shown of a window")
    max_frames: int = Field(768, ge=FRAME_FACTOR, description="Most frames shown of a window")
    temperature: float = Field(0.1, ge=0, allow_inf_nan=False, description="Sampling temperature of the answer")
    top_p: float = Field(0.001, gt=0, le=1, description="Nucleus sampling of the answer")
    repetition_penalty: float = Field(1.05, gt=0, allow_inf_nan=False, description="Repetition penalty of the answer")
    max_output_tokens: int = Field(512, ge=1, description="Longest answer")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of the GPU's memory for the engine. Default: the model's, 0.85"
    )
    processor_cache_gb: float | None = Field(
        None, ge=0, description="Memory for preprocessed videos. Default: the model's, 4"
    )
    max_batched_tokens: int | None = Field(
        None, ge=1, description="Tokens in one step of the engine. Default: the model's, 32768"
    )
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

    @field_validator("stage1_prompt")
    @classmethod
    def _usable_stage1(cls, text: str) -> str:
        return Prompt("custom", text, DEFAULT_PROMPT.stage2).stage1

    @field_validator("stage2_prompt")
    @classmethod
    def _usable_stage2(cls, text: str) -> str:
        return Prompt("custom", DEFAULT_PROMPT.stage1, text).stage2

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.remainder_threshold > self.window_size:
            raise ValueError(
                f"CAPTION_REMAINDER_THRESHOLD={self.remainder_threshold} is above CAPTION_WINDOW_SIZE="
                f"{self.window_size}: lower the one or raise the other"
            )
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"CAPTION_MIN_FRAMES={self.min_frames} is above CAPTION_MAX_FRAMES={self.max_frames}: "
                "lower the one or raise the other"
            )
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
        SettingsError: if a variable's value cannot be used, or a variable's name looks like a setting's misspelt.
    """
    _check_spelling()
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(detail) for detail in error.errors())) from None


def _check_spelling() -> None:
    """Other names with the prefix may be somebody else's: Kubernetes, say, sets some for a Service called caption."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known and (meant := get_close_matches(name, known, 1, 0.85)):
            raise SettingsError(f"{name} is no setting: {meant[0]} is; set that, or unset {name}")


def _explain(detail: Any) -> str:
    """One line for one of pydantic's findings: variable, value, what is wrong."""
    problem = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return problem
    variable = PREFIX + str(detail["loc"][0]).upper()
    return f"{variable}={os.environ.get(variable)!r}: {problem}"
