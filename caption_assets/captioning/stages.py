"""The stages of a recipe: each asks one question about every window, and has its own prompt and table."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from caption_assets.captioning.output import TEXT, ChoiceOutput, JsonOutput, Output, TextOutput
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.models.variants import Variant
from caption_assets.store.caption_columns import CaptionColumns

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
"""A stage's name: it is a folder, and part of an asset key and of file names."""
_DAGSTER_NAMES = frozenset(
    {"arg_dict", "bool", "conf", "config", "context", "dict", "float", "input", "input_arg_dict", "int", "meta"}
    | {"output", "output_arg_dict", "str", "type", *keyword.kwlist}
)
"""Names that Dagster refuses for the outputs of a step, and thus for assets."""
RESERVED_NAMES = frozenset(
    {
        "captioned_dataset",
        "captions",
        "clip_manifest",
        "corrections",
        "decode",
        "gallery",
        "model_weights",
        "seconds",
        "shard_index",
        "shards",
        "store",
        "weights",
        *_DAGSTER_NAMES,
    }
)
"""Names of other assets, steps and folders of the root, the slot that is no stage, what Dagster refuses, and what a run
measures beside the seconds of each stage."""
MAX_OUTPUT_TOKENS = "CAPTION_MAX_OUTPUT_TOKENS"
"""The setting of the output limit of all stages without one of their own."""
_SLOT = re.compile(r"\{([a-z][a-z0-9_]*)\}")
SECONDS = "seconds"
"""The slot of the window's duration, in seconds."""
_SINGLE_SLOT = "{caption}"
"""The slot of a stage that needs one other stage, as earlier releases wrote and hashed it."""


class StageError(ValueError):
    """An invalid stage.

    Args:
        stage: name of the stage.
        field: the invalid field of the stage in a recipe file, or the keys and item numbers that lead to it.
        message: the problem and its remedy.
    """

    def __init__(self, stage: str, field: str | tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.field = (field,) if isinstance(field, str) else field


@dataclass(frozen=True, slots=True)
class Stage:
    """One question about each window.

    Raises:
        StageError: if the name is invalid, the prompt is empty, a stage without video needs no other stage, or a stage
            with video has a model of its own.
    """

    name: str
    """The name of the stage's asset, table and folder."""
    prompt: str
    """The instruction. ``{name}`` is replaced by the text of the stage of that name, ``{seconds}`` by the window's
    duration."""
    output: Output = TEXT
    video: bool = True
    """Whether the window is shown."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Fields of ``SamplingParams`` that differ from the recipe's."""
    model: Variant | None = None
    """The language model that answers a stage without video; None for the video model."""
    place: str = field(default="", compare=False)
    """File and line of the output in the recipe file, for messages; empty for a stage that no file describes."""
    needs: tuple[str, ...] = field(init=False)
    """Names of the stages whose texts are in the prompt, in the order of their slots."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise StageError(
                self.name,
                "name",
                f"{self.name!r} cannot be an asset and a folder: use up to 63 lower-case letters, digits and "
                "underscores, starting with a letter",
            )
        if self.name in RESERVED_NAMES:
            raise StageError(self.name, "name", f"{self.name!r} is reserved: choose another name")
        if not self.prompt.strip():
            raise StageError(self.name, "prompt", f"the prompt of {self.name} is empty: give it an instruction")
        object.__setattr__(self, "needs", tuple(dict.fromkeys(self.slots)))
        if not self.video and not self.needs:
            raise StageError(
                self.name,
                "video",
                f"{self.name} sees neither the video nor a text: set video to true, or put another stage into its "
                "prompt, as in {caption}",
            )
        if self.video and self.model is not None:
            raise StageError(
                self.name,
                "model",
                f"{self.name} shows the video, which its own model {self.model.hub_id} would not see: set video to "
                "false, or remove the model (CAPTION_MODEL chooses the video model)",
            )

    @property
    def template(self) -> str:
        """The prompt for hashes: a single slot has no name, so that renaming the needed stage changes no hash."""
        return self.instruction(dict.fromkeys(self.needs, _SINGLE_SLOT)) if len(self.needs) == 1 else self.prompt

    def instruction(self, texts: Mapping[str, str], seconds: float | None = None) -> str:
        """The prompt with the texts of the needed stages, inserted literally: slots in them are not replaced.

        Args:
            texts: the texts, by stage.
            seconds: the window's duration; None leaves its slot.
        """
        duration = f"{{{SECONDS}}}" if seconds is None else f"{seconds:.1f}"
        return _SLOT.sub(lambda slot: {**texts, SECONDS: duration}[slot[1]], self.prompt)

    @property
    def slots(self) -> list[str]:
        """Names of the stages in the prompt's slots; a stage is there as often as its text."""
        return [name for name in _SLOT.findall(self.prompt) if name != SECONDS]

    @property
    def label(self) -> str:
        """The stage in messages about its output."""
        return f"{self.name} ({self.place})" if self.place else self.name

    @property
    def limit_name(self) -> str:
        """The name of what sets the output limit, for messages."""
        return f"max_output_tokens of {self.name}" if "max_output_tokens" in self.sampling else MAX_OUTPUT_TOKENS

    @property
    def columns(self) -> CaptionColumns:
        """The columns of the stage's table that other stages' tables do not have."""
        match self.output:
            case JsonOutput():
                return CaptionColumns(self.needs, json_schema=self.output.schema)
            case ChoiceOutput():
                return CaptionColumns(self.needs, self.output.choices, self.output.score)
            case TextOutput():
                return CaptionColumns(self.needs)

    def params(self, recipe: SamplingParams) -> SamplingParams:
        """The sampling parameters, given those of the recipe. A choice takes the most probable of its tokens.

        A recipe with a seed decodes greedily: only the repetition penalty and the output limit of the stage apply.
        """
        if isinstance(self.output, ChoiceOutput):
            return SamplingParams(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_output_tokens=1)
        fixed = () if recipe.seed is None else ("temperature", "top_p", "seed")
        own: Mapping[str, Any] = {name: value for name, value in self.sampling.items() if name not in fixed}
        return replace(recipe, **own)


@dataclass(frozen=True, slots=True)
class StageGraph:
    """The stages of a recipe, each after those that it needs.

    Raises:
        StageError: if two stages have the same name, a slot names no stage, stages or steps need each other, or the
            clips' prompts would replace one with slots.
    """

    name: str
    """The recipe's name."""
    stages: tuple[Stage, ...]
    clip_prompt: str = ""
    """Name of the stage whose prompt a clip's own prompt replaces. Default: the first stage that answers in text and
    needs no other; if there is none, it is empty, and no prompt is replaced."""
    description: str = ""
    """One sentence about the recipe, for people."""
    steps: tuple[tuple[Stage, ...], ...] = field(init=False)
    """The stages by model, that of the video model first. A step captions all stages of one model."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        for number, stage in enumerate(self.stages):
            if stage.name in names[:number]:
                raise StageError(stage.name, "name", f"there are two stages {stage.name!r}: rename one of them")
            if unknown := [name for name in stage.needs if name not in names]:
                raise StageError(
                    stage.name,
                    "prompt",
                    f"the slot {{{unknown[0]}}} names no stage: use one of {', '.join(names)} or {SECONDS}, or write a "
                    "space after the brace if it is not a slot",
                )
        object.__setattr__(self, "stages", _sorted(self.stages))
        object.__setattr__(self, "steps", _steps(self.stages))
        if not self.clip_prompt:
            first = (stage.name for stage in self.stages if stage.output == TEXT and not stage.needs)
            object.__setattr__(self, "clip_prompt", next(first, ""))
            return
        if self.clip_prompt not in names:
            raise StageError(
                names[0], "clip_prompt", f"clip_prompt is {self.clip_prompt!r}: use one of {', '.join(names)}"
            )
        if self.stage(self.clip_prompt).needs:
            raise StageError(
                self.clip_prompt,
                "clip_prompt",
                f"a clip's own prompt would replace that of {self.clip_prompt}, with its slots: set clip_prompt to a "
                "stage without slots",
            )

    def stage(self, name: str) -> Stage:
        """The stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)

    def upstream(self, stage: Stage) -> list[Stage]:
        """The stages that a stage needs, directly or through others, in order."""
        names = set(stage.needs)
        for earlier in reversed(self.stages):
            if earlier.name in names:
                names.update(earlier.needs)
        return [earlier for earlier in self.stages if earlier.name in names]


def _sorted(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages, each after those that it needs, otherwise in their order."""
    waiting, ordered = list(stages), dict[str, Stage]()
    while waiting:
        ready = next((stage for stage in waiting if all(name in ordered for name in stage.needs)), None)
        if ready is None:
            circle = _circle(waiting)
            raise StageError(
                circle[0],
                "prompt",
                f"stages need each other in a circle: {' → '.join(circle)}; remove a slot from one of them",
            )
        ordered[ready.name] = ready
        waiting.remove(ready)
    return tuple(ordered.values())


def _circle(waiting: list[Stage]) -> list[str]:
    """Names of stages that need each other, the first one again at the end; each of ``waiting`` needs another one."""
    names = {stage.name for stage in waiting}
    next_name = {stage.name: next(name for name in stage.needs if name in names) for stage in waiting}
    path = [waiting[0].name]
    while path[-1] not in path[:-1]:
        path.append(next_name[path[-1]])
    return path[path.index(path[-1]) :]


def _steps(stages: tuple[Stage, ...]) -> tuple[tuple[Stage, ...], ...]:
    """The stages by model, each step after those that it needs."""
    models: list[Variant | None] = []
    for stage in stages:  # variants cannot be hashed
        if stage.model not in models:
            models.append(stage.model)
    waiting = [tuple(stage for stage in stages if stage.model == model) for model in models]
    ordered: list[tuple[Stage, ...]] = []
    done: set[str] = set()
    while waiting:
        needs = [_other_needs(step, done) for step in waiting]
        if all(needs):
            stage, need = needs[0][0]
            raise StageError(
                stage.name,
                "prompt",
                f"{stage.name} needs {need}, and the model of {need} needs that of {stage.name}: a model answers all "
                f"its stages in one step, so remove the slot {{{need}}}",
            )
        ordered.append(waiting.pop(needs.index([])))
        done |= {stage.name for stage in ordered[-1]}
    return tuple(ordered)


def _other_needs(step: tuple[Stage, ...], done: set[str]) -> list[tuple[Stage, str]]:
    """The stages of a step that need one of another step that is not done, each with the name of that one."""
    own = {stage.name for stage in step}
    return [(stage, name) for stage in step for name in stage.needs if name not in own | done]
