"""The recipe of captions: models, stages, frame sampling and sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any

from caption_assets.captioning.budget import FrameGrid, FrameTooNarrow, fit, visual_tokens
from caption_assets.captioning.output import answer_identity, output_identity
from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.quality import QUALITY_RULES, RULES_VERSION
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.captioning.vllm_arguments import CONTEXT, REFERENCE_STEP_TOKENS, STEP_TOKENS, non_neutral
from caption_assets.models.checkpoint import Lora
from caption_assets.models.variants import SAMPLE, PixelLimits, Variant
from caption_assets.store.tables import ManifestRow
from caption_assets.video.frame_sampling import FrameSampling, frame_count

DECODE_PLAN = "2"
"""Version of frame selection, decoding and resizing. Increase it if other pictures or other colors are shown, not for
differences of a level or two, which an update of FFmpeg or of the engine makes as well."""
REFERENCE_SAMPLING = FrameSampling(fps=2.0, min_frames=4, max_frames=768)
"""The reference's sampling (NeMo Curator). Do not change it: fingerprints contain it."""
REFERENCE_OUTPUT_TOKENS = 512
"""The reference's output limit. Do not change it: fingerprints contain it."""


CLIP_PROMPT = "clip"
"""Name of a prompt that a clip brings."""
_FORMER_STAGES = [stage for name in ("general", "driving", "surveillance") for stage in built_in(name).stages]
"""The stages of releases that hashed no stages upstream. Code versions do not contain them, and stay the same."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything except the clip that determines a caption."""

    variant: Variant = SAMPLE
    """The video model; in the recipe of a later step, the language model of its stages."""
    fp8: bool = False
    """Whether the language model is quantized to FP8."""
    graph: StageGraph = None  # type: ignore[assignment]  # set by __post_init__
    """The stages. Default: the built-in recipe of the variant."""
    frames: FrameSampling = field(default_factory=FrameSampling)
    generation: SamplingParams = field(default_factory=SamplingParams)
    regenerations: int = 1
    """Maximum number of regenerations of a flagged caption."""
    quality_rules: int = RULES_VERSION
    """Version of the rules by which captions are flagged. Fingerprints do not contain it; see ``Reuse``."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """The user's further arguments of vLLM's ``AsyncEngineArgs``. Hashes do not contain neutral ones."""
    weights: str | None = None
    """Digest of the weights' manifest, for a model by folder, whose name and revision do not identify its files. None
    for a model by Hub id and revision."""
    lora: Lora | None = None
    """The LoRA adapter of the model, if there is one."""
    lora_weights: str | None = None
    """Digest of the adapter's manifest, for an adapter by folder; see ``weights``."""
    dtype: str | None = None
    """Number format of weights and activations; None is the variant's."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the model's chat template."""
    reasoning_parser: str | None = None
    """vLLM's reasoning parser; None is the one of the model's family."""
    video_recipe: Recipe | None = None
    """In the recipe of a language model, that of the video model."""

    def __post_init__(self) -> None:
        if self.graph is None:
            object.__setattr__(self, "graph", built_in(self.variant.recipe))  # type: ignore[unreachable]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, each after those that it needs."""
        return self.graph.stages

    @property
    def own_stages(self) -> tuple[Stage, ...]:
        """The stages that the model answers."""
        return tuple(stage for stage in self.stages if self.answers(stage))

    @property
    def steps(self) -> tuple[Recipe, ...]:
        """This recipe, then that of each language model, in the order in which they are run."""
        return tuple(self.of(step[0]) for step in self.graph.steps)

    def of(self, stage: Stage) -> Recipe:
        """The recipe of the model that answers a stage. Settings of the video model do not apply to others."""
        if self.answers(stage):
            return self
        video = self.video_recipe or self
        if stage.model is None:
            return video
        return replace(
            video,
            variant=stage.model,
            fp8=stage.model.fp8,
            engine={},
            weights=None,
            lora=None,
            lora_weights=None,
            chat_template_kwargs={},
            reasoning_parser=None,
            video_recipe=video,
        )

    def answers(self, stage: Stage) -> bool:
        """Whether the model answers a stage."""
        return stage.model == (None if self.variant.video else self.variant)

    def clip_prompt(self, stage: Stage, window: ManifestRow) -> str | None:
        """The prompt of a window's clip, if it replaces that of the stage."""
        return window.prompt if stage.name == self.graph.clip_prompt else None

    def prompt_name(self, stage: Stage, window: ManifestRow) -> str:
        """Name of a window's prompt: ``clip`` for its clip's own, otherwise the recipe's name."""
        return self.graph.name if self.clip_prompt(stage, window) is None else CLIP_PROMPT

    def template(self, stage: Stage, window: ManifestRow) -> str:
        """The instruction of a stage for a window, with its slots for texts."""
        own = self.clip_prompt(stage, window)
        return stage.template if own is None else own

    def instruction(self, stage: Stage, window: ManifestRow, texts: Mapping[str, str]) -> str:
        """The instruction of a stage for a window, with the texts of the stages that it needs."""
        own = self.clip_prompt(stage, window)
        seconds = (window.end_seconds or 0.0) - (window.start_seconds or 0.0)
        return stage.instruction(texts, seconds) if own is None else own

    def params(self, stage: Stage) -> SamplingParams:
        """The sampling parameters of a stage."""
        return stage.params(self.generation)

    @property
    def context(self) -> int | None:
        """Maximum tokens of prompt and answer together; None if the engine determines it."""
        declared = self.engine.get(CONTEXT, self.variant.max_model_len)
        return declared if isinstance(declared, int) and declared > 0 else None

    def predicted_tokens(self, window: ManifestRow) -> int:
        """Visual tokens of a window, predicted without an engine.

        It is 0 for an unreadable clip or an unsupported aspect ratio. For Qwen's processors it is an upper bound: a
        window without room in the context is reduced further. For other processors it is an estimate.
        """
        grid = _grid(window, self.frames, self.variant.pixels)
        return visual_tokens(grid, self.variant.pixels.factor) if grid else 0

    @property
    def video_version(self) -> str:
        """A short hash of what decides a window's frames except their number and size."""
        return _hash({"frames": asdict(self.frames), "decode_plan": DECODE_PLAN})[:8]

    def identity(self, stage: Stage) -> Mapping[str, object]:
        """Everything that a caption of this stage depends on except the clip and the weights, as plain values."""
        recipe = self.of(stage)
        values = recipe._shared_values(stage, non_neutral({**recipe.variant.engine, **recipe.engine}))
        # Releases without a version of the rules had version 1, and their tables stay valid.
        return values if self.quality_rules == 1 else {**values, QUALITY_RULES: self.quality_rules}

    def version(self, stage: Stage) -> str:
        """The code version of the stage's asset: a short hash of its ``identity`` and of all stages upstream.

        A changed stage thus marks those that need it as stale at once, so that one run makes them all. Settings of
        another model are not part of it: they are not known in that model's step.
        """
        upstream = {
            other.name: _stage_values(other) for other in self.graph.upstream(stage) if other not in _FORMER_STAGES
        }
        return _hash({**self.identity(stage), **({"upstream": upstream} if upstream else {})})[:16]

    def fingerprint(
        self,
        stage: Stage,
        window: ManifestRow,
        texts: Mapping[str, str] | None = None,
        *,
        reduced: bool = False,
        cut_off: bool = False,
        quality_rules: int | None = None,
    ) -> str:
        """The hash of everything that determines one window's caption, computed without decoding.

        The hash contains a limit only for the windows that it affects, so that raising the limit changes no other
        fingerprint. It contains the number and size of the frames that frame sampling and pixel limits give for this
        window. Where those equal the reference's, it contains only the reference's values, as in earlier releases.
        Frame indices and the true frame rate follow from the clip's content, the window's bounds, the number of frames
        and ``DECODE_PLAN``.

        Args:
            stage: the stage.
            window: the manifest's row.
            texts: the texts in the prompt, by stage.
            reduced: whether the engine has no room for all frames. Only then the hash contains the context and the
                tokens of one step.
            cut_off: whether an answer reached the output limit. Only then, or with ``reduced``, the hash contains
                this limit.
            quality_rules: version of the quality rules, if the caption replaces an outdated one; otherwise None.

        Raises:
            ValueError: if another model answers the stage: the digest of its weights is not known; see ``of``.
        """
        if not self.answers(stage):
            raise ValueError(f"{stage.name} is not answered by {self.variant.hub_id}: use the recipe of its model")
        arguments = non_neutral({**self.variant.engine, **self.engine})
        context = arguments.pop(CONTEXT, self.variant.max_model_len)
        params = self.params(stage)
        values = self._shared_values(stage, arguments)
        if stage.video and (grid := _grid(window, self.frames, self.variant.pixels)) is not None:
            reference = _reference_pixels(self.variant.pixels.factor)
            values |= {"frames": asdict(REFERENCE_SAMPLING), "pixels": asdict(reference)}
            if grid != _grid(window, REFERENCE_SAMPLING, reference):
                values["grid"] = asdict(grid)
        values |= answer_identity(stage.output)
        values["generation"] = {**asdict(params), "max_output_tokens": REFERENCE_OUTPUT_TOKENS}
        if reduced:
            values |= {"context": context, "min_pixels": self.variant.pixels.min_pixels}
            if (
                step := {**self.variant.engine, **self.engine}.get(STEP_TOKENS, REFERENCE_STEP_TOKENS)
            ) != REFERENCE_STEP_TOKENS:
                values["step"] = step
        if reduced or cut_off:
            values["max_output_tokens"] = params.max_output_tokens
        if cut_off:
            values["cut_off"] = True
        if quality_rules is not None:
            values[QUALITY_RULES] = quality_rules
        if self.weights is not None:
            values["weights"] = self.weights
        if self.lora_weights is not None:
            values["lora_weights"] = self.lora_weights
        own = self.clip_prompt(stage, window)
        values |= {"prompt": text_hash(self.template(stage, window)), "clip_prompt": own}
        return _hash_window(values, window, texts)

    def former_fingerprint(
        self, stage: Stage, window: ManifestRow, texts: Mapping[str, str] | None = None
    ) -> str | None:
        """The fingerprint that earlier releases gave the same caption; None where it is not specific enough.

        They hashed all limits and the prompts of run and clip, but no engine arguments, weights or adapters.
        """
        if self.weights is not None or self.lora is not None or non_neutral(self.engine).keys() - {CONTEXT}:
            return None
        return _hash_window({**self._shared_values(stage, {}), "clip_prompt": window.prompt}, window, texts)

    def _shared_values(self, stage: Stage, arguments: Mapping[str, object]) -> dict[str, object]:
        """The values that all hashes contain. Unused optional ones are absent, so that older hashes stay valid."""
        variant = self.variant
        further = {"chat_template_kwargs": dict(self.chat_template_kwargs), "reasoning_parser": self.reasoning_parser}
        video = {"pixels": asdict(variant.pixels), "frames": asdict(self.frames), "decode_plan": DECODE_PLAN}
        return {
            **{name: value for name, value in further.items() if value},
            "stage": 2 if stage.needs else 1,  # earlier releases hashed the number of one of two stages
            "model": variant.hub_id,
            "revision": variant.revision,
            "fp8": self.fp8,
            "dtype": self.dtype or variant.dtype,
            "prompt": text_hash(stage.template),
            "generation": asdict(self.params(stage)),
            "regenerations": self.regenerations,
            **(video if stage.video else {}),
            **output_identity(stage.output),
            **({"engine": dict(arguments)} if arguments else {}),
            **({"lora": [self.lora.hub_id, self.lora.revision]} if self.lora else {}),
        }


def _stage_values(stage: Stage) -> dict[str, object]:
    """What a recipe file says about a stage that decides its texts, as plain values."""
    return {
        "prompt": text_hash(stage.template),
        "video": stage.video,
        "sampling": dict(stage.sampling),
        **answer_identity(stage.output),
        **({"model": [stage.model.hub_id, stage.model.revision]} if stage.model else {}),
    }


def _reference_pixels(factor: int) -> PixelLimits:
    """The reference's limits (NeMo Curator) for patches of ``factor`` pixels. Fingerprints contain them."""
    area = factor**2
    return PixelLimits(factor, min_pixels=128 * area, max_pixels=768 * area, total_pixels=24576 * area)


def _grid(window: ManifestRow, sampling: FrameSampling, limits: PixelLimits) -> FrameGrid | None:
    """A window's frames within these limits; None for an unreadable clip or an unsupported aspect ratio."""
    if window.start_frame is None or window.end_frame is None or window.height is None or window.width is None:
        return None
    if window.start_seconds is None or window.end_seconds is None:
        return None
    frames = frame_count(window.end_seconds - window.start_seconds, window.end_frame - window.start_frame, sampling)
    try:
        return fit(frames, window.height, window.width, limits)
    except FrameTooNarrow:
        return None


def _hash_window(values: Mapping[str, object], window: ManifestRow, texts: Mapping[str, str] | None) -> str:
    texts = texts or {}
    # A single text has no name and the key of earlier releases, so that renaming the needed stage changes no hash.
    single, several = (next(iter(texts.values()), None), {}) if len(texts) < 2 else (None, {"texts": dict(texts)})
    return _hash(
        {
            "clip_prompt": None,
            **values,
            **several,
            "content": window.content_tag,
            "window": [window.start_frame, window.end_frame],
            "stage1_caption": single,
        }
    )[:32]


def _hash(values: Mapping[str, object]) -> str:
    return sha256(json.dumps(values, sort_keys=True, default=repr).encode()).hexdigest()
