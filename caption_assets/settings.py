"""Every setting of the project, from ``CAPTION_*`` environment variables, read and checked once."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from caption_assets.captioning.engine_arguments import STEP
from caption_assets.captioning.job import CHECKPOINT_ROWS, CHECKPOINT_SECONDS, LEASE_SECONDS, MAX_ATTEMPTS
from caption_assets.captioning.prompts import GENERAL, PROMPTS, Prompt
from caption_assets.captioning.recipe import DEFAULTS, DETERMINISTIC, MOST_TEMPERATURE, Recipe, SamplingParams
from caption_assets.credentials import find_credential, is_credential, is_hub_token, mentions_credential
from caption_assets.environment import PREFIX, is_service_address, unknown_settings
from caption_assets.errors import CaptionAssetsError
from caption_assets.export.format import Export, Format
from caption_assets.models.checkpoint import Checkpoint, Lora
from caption_assets.models.lora import find_lora
from caption_assets.models.variants import VARIANTS, UnknownModel, Variant, find_variant
from caption_assets.video.frame_sampling import FRAME_FACTOR, FrameSampling
from caption_assets.video.window import MIN_WINDOW_FRAMES, MIN_WINDOW_SECONDS, Windowing

logger = logging.getLogger(__name__)


class SettingsError(CaptionAssetsError):
    """A setting that cannot be used: the message names variable, value and remedy."""


def _parse_json_object(example: str) -> BeforeValidator:
    """Validation of a JSON object, by the project: pydantic-settings' own error names neither value nor remedy."""

    def parse(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            found = json.loads(value, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise ValueError(f"invalid JSON at {where} ({error.msg}): write a JSON object such as {example}") from None
        except RecursionError:
            raise ValueError(f"JSON nested too deeply: write a JSON object such as {example}") from None
        if not isinstance(found, dict):
            raise ValueError(f"JSON {_JSON_TYPES[type(found)]}, not an object: write one such as {example}")
        return found

    return BeforeValidator(parse)


def _check_labels(labels: object) -> object:
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if not isinstance(value, str):
            raise ValueError(f"the label {name!r} is {json.dumps(value)}, not a string: put its value in quotes")
    return labels


_JSON_ARGUMENTS = ("engine_args", "chat_template_kwargs")
_DTYPES = {"half": "float16", "float": "float32"}
"""Names of number formats that have another, which is the one that captions are told apart by."""
_JSON_TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}: write a number, or leave the key out")


class Settings(BaseSettings):
    """The settings, by field; the variable of ``root`` is ``CAPTION_ROOT``, and so on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    root: str = Field("data", description="Folder or `s3://bucket/prefix` for everything that is written")
    source: str | None = Field(None, description="Where the shards lie; may be read-only. Default: `<root>/shards`")
    project: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$",
        description="Name of the project on a Dagster instance that others use too: the prefix of its asset keys and "
        "partitions, up to 40 letters, digits, `_` and `-`. Default: no prefix",
    )
    root_profile: str | None = Field(
        None,
        description="AWS profile for the root and for models in object storage. Default: the standard AWS variables",
    )
    source_profile: str | None = Field(
        None,
        description="AWS profile for the source and for the clips that its lists name. Default: the root's if "
        "`CAPTION_SOURCE` is unset, else the standard AWS variables",
    )
    s3_anonymous: bool = Field(
        False, description="Read a public source, and the clips that its lists name, without credentials"
    )
    s3_requester_pays: bool = Field(
        False, description="Pay for requests to a source in requester-pays buckets, as their owner demands"
    )
    s3_path_style: bool | None = Field(
        None,
        description="Whether the bucket's name goes into the path of S3 addresses or before their host. Default: into "
        "the path if `AWS_ENDPOINT_URL` is set",
    )
    cache: Path = Field(
        Path("~/.cache/caption-assets"),
        description="Folder on the engine's own disk for weights fetched from the root or on their way to it",
    )
    cache_gb: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Most that the weights in that folder may take, in GiB; models that were not used for the longest "
        "time make room. Default: no limit",
    )
    verify_weights: bool = Field(
        False,
        description="Compare the hashes of all files of weights each time, in the mirror and in the cache, and mend "
        "what is damaged. Default: of those whose size has changed, in the cache also their time",
    )
    model: str = Field(
        "sample",
        description="Model: `sample`, another key of the table of models, or the Hub id or folder (local or "
        "`s3://bucket/prefix`) of a model that vLLM serves with video",
    )
    model_revision: str | None = Field(
        None,
        description="Commit of a model by Hub id; for a folder, any word that distinguishes its contents from others",
    )
    model_like: str | None = Field(
        None, description="Model key whose frame sizes and engine defaults a model by Hub id or folder shares"
    )
    lora: str | None = Field(
        None,
        description="LoRA adapter for the model, by Hub id or folder (local or `s3://bucket/prefix`). Default: none",
    )
    lora_revision: str | None = Field(
        None,
        description="Commit of an adapter by Hub id; for a folder, any word that distinguishes its contents from "
        "others",
    )
    fp8: bool | None = Field(
        None, description="Quantise the language model to FP8. Default: as the model wants; needs a GPU"
    )
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = Field(
        "auto",
        description="Number format of weights and activations: `auto`, `half` (`float16`), `bfloat16` or `float32` "
        "(`float`). T4 and V100 need `half`. Default: the model's",
    )
    chat_template_kwargs: Annotated[dict[str, Any], NoDecode, _parse_json_object('{"enable_thinking": true}')] = Field(
        default_factory=dict,
        description="Arguments of the model's chat template, as a JSON object. Default: `enable_thinking` and "
        "`thinking` are false where the template uses them",
    )
    reasoning_parser: str | None = Field(
        None,
        description="vLLM's reasoning parser, such as `qwen3`, which takes reasoning out of answers. Default: by the "
        "model's family",
    )
    prompt: str = Field(GENERAL.name, description=f"Named prompt: {', '.join(f'`{name}`' for name in PROMPTS)}")
    stage1_prompt: str | None = Field(None, description="Instruction of stage 1. Default: the named prompt's")
    stage2_prompt: str | None = Field(
        None,
        description="Instruction of stage 2, with `{caption}` where the stage-1 caption goes. Default: the named "
        "prompt's",
    )
    window_size: int = Field(256, ge=MIN_WINDOW_FRAMES, description="Source frames in a window")
    remainder_threshold: int = Field(
        128, ge=MIN_WINDOW_FRAMES, description="A tail of fewer frames joins the window before it"
    )
    window_seconds: float | None = Field(
        None,
        ge=MIN_WINDOW_SECONDS,
        allow_inf_nan=False,
        description="Length of a window, in place of the two settings above; a tail shorter than half of it joins the "
        "window before. Default: windows are cut by frames",
    )
    sample_fps: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="Frames of each second of a clip that are shown to the model"
    )
    min_frames: int = Field(4, ge=FRAME_FACTOR, description="Least frames shown of a window")
    max_frames: int = Field(768, ge=FRAME_FACTOR, description="Most frames shown of a window")
    temperature: float | None = Field(
        None,
        ge=0,
        le=MOST_TEMPERATURE,
        description="Sampling temperature of the answer. Default, here and in the next two: what the files of a model "
        "by Hub id or folder say, else 0.1",
    )
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling of the answer. Default: else 0.001")
    repetition_penalty: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Repetition penalty of the answer. Default: else 1.05"
    )
    max_output_tokens: int = Field(512, ge=1, description="Longest answer")
    deterministic: bool = Field(
        False, description="Always the likeliest word, with fixed seeds, whatever the sampling settings say"
    )
    regenerations: int = Field(
        1, ge=0, description="How often a caption with quality flags is generated again; the best attempt is kept"
    )
    request_seconds: float = Field(600.0, gt=0, description="Longest time that one answer of the engine may take")
    max_engine_restarts: int = Field(
        10, ge=0, description="Deaths of the engine that one run puts up with for every 1,000 answers begun"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that one replica of the model is spread over")
    data_parallel_size: int = Field(1, ge=1, description="Replicas of the model, each on GPUs of its own")
    engine_args: Annotated[dict[str, Any], NoDecode, _parse_json_object('{"max_num_seqs": 8}')] = Field(
        default_factory=dict,
        description="Further arguments of vLLM's `AsyncEngineArgs`, as a JSON object without credentials: the UI shows "
        "it",
    )
    clip_seconds: float = Field(
        120.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest time that probing a clip or decoding a window may take",
    )
    clip_memory_gb: float = Field(4.0, ge=1, allow_inf_nan=False, description="Most memory that this may take, in GiB")
    clip_workers: int | None = Field(
        None, ge=1, description="Processes that probe and decode clips. Default: one a core, up to 8"
    )
    previews: bool = Field(False, description="Keep a small moving picture and a still one of each window captioned")
    frames_gb: float = Field(2.0, gt=0, description="Memory for the decoded frames of the windows under way, in GiB")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of the GPU's memory for the engine. Default: the model's, 0.85"
    )
    processor_cache_gb: float | None = Field(
        None, ge=0, description="Memory for preprocessed videos. Default: the model's, 4"
    )
    max_batched_tokens: int | None = Field(
        None, ge=1, description="Tokens in one step of the engine. Default: the model's, 32768"
    )
    checkpoint_rows: int = Field(
        CHECKPOINT_ROWS, ge=1, description="Finished windows of a shard that make a checkpoint due"
    )
    checkpoint_seconds: float = Field(
        CHECKPOINT_SECONDS,
        gt=0,
        allow_inf_nan=False,
        description="Longest time that a finished window waits for its checkpoint",
    )
    lease_seconds: float = Field(
        LEASE_SECONDS,
        ge=5,
        allow_inf_nan=False,
        description="Time after which another run may take over a shard of which nothing was heard",
    )
    max_attempts: int = Field(
        MAX_ATTEMPTS,
        ge=1,
        description="Requests for a caption, over all runs, after which its row stays failed; one run makes four",
    )
    executor: Literal["in_process", "multiprocess", "k8s"] = Field(
        "in_process",
        description="Where a run's steps are done: `in_process`, in the run's own; `multiprocess`, each in one of its "
        "own; `k8s`, each in a Kubernetes pod of its own",
    )
    step_account: str | None = Field(
        None, description="Kubernetes ServiceAccount of the steps' pods. Default: that of the run's pod"
    )
    gpu_image: str | None = Field(
        None,
        description="Image of the captioning step's pod, with the engine; `{version}` stands for the project's. "
        "Default: that of the run's pod",
    )
    gpu_node: Annotated[
        dict[str, str],
        NoDecode,
        BeforeValidator(_check_labels),  # of the two, the last one comes first
        _parse_json_object('{"nvidia.com/gpu.present": "true"}'),
    ] = Field({"nvidia.com/gpu.present": "true"}, description="Labels of the nodes with GPUs, as a JSON object")
    metrics_port: int | None = Field(
        None,
        ge=1024,
        le=65535,
        description="Port on which the captioning step serves metrics for Prometheus. Default: none are served",
    )
    automate: bool = Field(
        False, description="Whether the sensors and the schedule run from the start. Default: start them in the UI"
    )
    look_seconds: int = Field(60, ge=1, description="How often the source is looked through for new shards")
    shard_quiet_minutes: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="A shard that was written to more recently than this is left alone by the sensor",
    )
    shard_marker: str | None = Field(
        None,
        description="Name of an object that says that a shard is whole: `<shard>/<name>` of a folder, `<file>.<name>` "
        "of a tar or list. Default: none is waited for",
    )
    max_removed_fraction: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Maximum fraction of the registered shards that is reported as removed when they are gone from the "
        "source; if more are gone, or all, an alarm is raised and nothing changes until a person confirms it",
    )
    backfill_cron: str = Field(
        "*/10 * * * *", description="When the schedule requests what is missing, such as `0 20-23,0-6 * * *`, in UTC"
    )
    backfill_shards: int = Field(256, ge=1, description="Most shards that the schedule has under way at once")
    shard_attempts: int = Field(
        3, ge=1, description="Runs that the schedule requests for a shard while its content stays the same"
    )
    overdue_hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Longest time that a shard may wait for its captions before an alert. Default: any",
    )
    alert_webhook: SecretStr | None = Field(
        None,
        description="Address of a Slack incoming webhook for alerts; a secret. Default: they are in the daemon's log",
    )
    shards_per_run: int = Field(16, ge=1, description="Shards that a backfill captions with one engine start")
    gpu_hour_price: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Price of one GPU for an hour, from which the UI tells costs",
    )
    link_url: str | None = Field(
        None,
        description="Web address under which the root's contents can be opened, with which links in the UI begin. "
        "Default: the UI names paths",
    )
    max_failed_fraction: float = Field(
        0.05, ge=0, le=1, description="Share of a shard's captionable windows that may fail before the step fails"
    )
    max_unreadable_fraction: float = Field(
        0.1, ge=0, le=1, description="Share of a shard's clips that may be unreadable before the step fails"
    )
    export: Format | None = Field(
        None,
        description="Form of the dataset for training: `webdataset`, tars that hold the clips, or `jsonl`, lines that "
        "name them. Default: there is no asset `captioned_dataset`",
    )
    export_file_gb: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Most samples in one file of that dataset, in GiB; a larger clip has a file of its own",
    )
    export_license: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="Licence that the dataset's card names, as the Hub spells it, such as `cc-by-4.0`. Default: none",
    )

    @field_validator("root", "source", "model", "lora", "gpu_image", "link_url")
    @classmethod
    def _without_credentials(cls, value: str | None) -> str | None:
        if value is not None and is_credential(value):
            raise ValueError(
                "the URL holds credentials, which Dagster's UI would show: remove them; those of a store belong in "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in a profile"
            )
        return value

    @field_validator("engine_args", "chat_template_kwargs")
    @classmethod
    def _arguments_without_credentials(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if found := find_credential(arguments):
            remedy = "set HF_TOKEN" if is_hub_token(*found) else "set the environment variable that its library reads"
            raise ValueError(f"{found[0]} is a credential, which Dagster's UI would show: remove it, and {remedy}")
        return arguments

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _of_no_service(cls, port: object) -> object:
        """Kubernetes sets this very variable for a Service called ``caption-metrics``."""
        return None if isinstance(port, str) and is_service_address(port) else port

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, name: str) -> str:
        if name not in PROMPTS:
            raise ValueError(f"there is no prompt of this name: choose one of {', '.join(PROMPTS)}")
        return name

    @field_validator("stage1_prompt")
    @classmethod
    def _usable_stage1(cls, text: str | None) -> str | None:
        return text if text is None else Prompt("custom", text, GENERAL.stage2).stage1

    @field_validator("stage2_prompt")
    @classmethod
    def _usable_stage2(cls, text: str | None) -> str | None:
        return text if text is None else Prompt("custom", GENERAL.stage1, text).stage2

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        try:
            find_variant(self.model, self.model_revision, self.model_like)
        except UnknownModel as error:
            raise ValueError(f"CAPTION_MODEL={self.model!r}: {error}") from None
        try:
            _ = self.adapter
        except UnknownModel as error:
            raise ValueError(f"CAPTION_LORA={self.lora!r}: {error}") from None
        if self.remainder_threshold > self.window_size:
            raise ValueError(
                f"CAPTION_REMAINDER_THRESHOLD={self.remainder_threshold} is above CAPTION_WINDOW_SIZE="
                f"{self.window_size}: lower the one or raise the other"
            )
        if self.s3_anonymous and self.s3_requester_pays:
            raise ValueError(
                "CAPTION_S3_ANONYMOUS and CAPTION_S3_REQUESTER_PAYS are both true, but nobody can be charged for an "
                "anonymous request: unset the one or the other"
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
        return find_variant(self.model, self.model_revision, self.model_like)

    @property
    def adapter(self) -> Lora | None:
        """The LoRA adapter, if there is one."""
        if self.lora is None:
            if self.lora_revision is not None:
                raise UnknownModel("CAPTION_LORA_REVISION is set without an adapter: set CAPTION_LORA, or leave it out")
            return None
        return find_lora(self.lora, self.lora_revision)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """What the asset ``model_weights`` consists of: the model, and the adapter if there is one."""
        return (self.variant, self.adapter) if self.adapter else (self.variant,)

    @property
    def config_overrides(self) -> dict[str, Any]:
        """What the user replaces in the model's ``config.json``."""
        found = self.engine_args.get("hf_overrides")
        return found if isinstance(found, dict) else {}

    @property
    def weights_code(self) -> str:
        """Code version of the asset ``model_weights``: the names and revisions of its checkpoints."""
        return "+".join(checkpoint.folder for checkpoint in self.checkpoints)

    @property
    def windowing(self) -> Windowing:
        """How clips are cut."""
        return Windowing(self.window_size, self.remainder_threshold, self.window_seconds)

    @property
    def gpus(self) -> int:
        """GPUs that the engine is spread over; 0 for a model that runs on the CPU."""
        return self.variant.gpus and self.tensor_parallel_size * self.data_parallel_size

    @property
    def recipe(self) -> Recipe:
        """What captions are made with."""
        return Recipe(
            variant=self.variant,
            fp8=self.variant.fp8 if self.fp8 is None else self.fp8,
            prompt=self._prompt,
            frames=FrameSampling(self.sample_fps, self.min_frames, self.max_frames),
            generation=self._generation,
            regenerations=self.regenerations,
            engine={STEP: self.max_batched_tokens, **self.engine_args} if self.max_batched_tokens else self.engine_args,
            lora=self.adapter,
            dtype=None if self.dtype == "auto" else _DTYPES.get(self.dtype, self.dtype),
            chat_template_kwargs=self.chat_template_kwargs,
            reasoning_parser=self.reasoning_parser,
        )

    @property
    def dataset(self) -> Export | None:
        """How the dataset for training is written, if it is to be."""
        if self.export is None:
            return None
        return Export(self.export, int(self.export_file_gb * 2**30), self.export_license)

    @property
    def _prompt(self) -> Prompt:
        named = PROMPTS[self.prompt]
        if self.stage1_prompt is None and self.stage2_prompt is None:
            return named
        return Prompt("custom", self.stage1_prompt or named.stage1, self.stage2_prompt or named.stage2)

    @property
    def _generation(self) -> SamplingParams:
        given = SamplingParams(self.temperature, self.top_p, self.repetition_penalty, self.max_output_tokens)
        generation = given if self._has_own_sampling else given.filled({}, DEFAULTS)
        if self.deterministic:
            return replace(
                DETERMINISTIC,
                repetition_penalty=generation.repetition_penalty,
                max_output_tokens=generation.max_output_tokens,
            )
        return generation

    @property
    def _has_own_sampling(self) -> bool:
        """Whether sampling is left to the model's files."""
        return self.model not in VARIANTS and self.model_like is None


def load_settings() -> Settings:
    """The settings of this process's environment.

    A variable with our prefix that resembles no setting is left alone, with a warning: it may be another program's.

    Raises:
        SettingsError: if a variable's value cannot be used, or a variable's name resembles that of a setting.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    problems = []
    for unknown in unknown_settings(os.environ, known):
        if unknown.suggestions:
            problems.append(
                f"Unknown setting {unknown.name}; did you mean {' or '.join(unknown.suggestions)}? Rename or unset it"
            )
        else:
            logger.warning("Unknown setting %s is ignored: see the table of settings in the README", unknown.name)
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [_explain(detail) for detail in error.errors()]
    if problems:
        raise SettingsError("; ".join(problems))
    return settings


def _explain(detail: Any) -> str:
    """One line for one of pydantic's findings: variable, value, what is wrong."""
    problem = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return problem
    variable = PREFIX + str(detail["loc"][0]).upper()
    value = os.environ.get(variable, "")
    hidden = mentions_credential(value) if detail["loc"][0] in _JSON_ARGUMENTS else is_credential(value)
    return f"{variable}={'…' if hidden else repr(value)}: {problem}"
