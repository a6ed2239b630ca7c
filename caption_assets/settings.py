"""The settings of the project: ``CAPTION_*`` environment variables, validated once."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from fsspec.core import split_protocol
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from caption_assets.captioning.caption_run import CHECKPOINT_ROWS, CHECKPOINT_SECONDS, LEASE_SECONDS, MAX_ATTEMPTS
from caption_assets.captioning.engine import EngineConfig
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import BUILT_IN, RecipeError, read_recipe
from caption_assets.captioning.sampling import DEFAULTS, DETERMINISTIC, MAX_TEMPERATURE, SamplingParams
from caption_assets.captioning.stages import StageGraph
from caption_assets.captioning.vllm_arguments import STEP_TOKENS
from caption_assets.credentials import find_credential, is_credential, is_hub_token, mentions_credential
from caption_assets.environment import PREFIX, is_service_address, unknown_settings
from caption_assets.errors import CaptionAssetsError
from caption_assets.export.condition import Condition, ConditionError
from caption_assets.export.config import (
    MAX_LONGEST_SIDE,
    BudgetConfig,
    Cut,
    CutConfig,
    ExportConfig,
    Format,
    OverLimit,
)
from caption_assets.export.formats import layout_of
from caption_assets.export.formats.chat import VIDEO_TAG, without_tags
from caption_assets.export.index import DATASET
from caption_assets.models.cache import CacheConfig
from caption_assets.models.checkpoint import Checkpoint, Lora
from caption_assets.models.lora import find_lora
from caption_assets.models.tokenizer import find_tokenizer
from caption_assets.models.variants import VARIANTS, UnknownModel, Variant, find_variant
from caption_assets.store.access import Access, StorageConfig
from caption_assets.store.failure import StoreError
from caption_assets.store.failure_limits import (
    ALLOWANCE,
    MAX_FAILED_FRACTION,
    MAX_UNREADABLE_FRACTION,
    FailureLimits,
)
from caption_assets.video.frame_sampling import FRAME_FACTOR, FrameSampling
from caption_assets.video.window import MIN_WINDOW_FRAMES, MIN_WINDOW_SECONDS, Windowing
from caption_assets.workers.sandbox import SandboxLimits

logger = logging.getLogger(__name__)


class SettingsError(CaptionAssetsError):
    """An invalid setting; the message gives variable, value and remedy."""


def _json_object(text: str, example: str) -> dict[str, Any]:
    """Parse a JSON object, with errors that give value and remedy; those of pydantic-settings do not."""
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"invalid JSON at {where} ({error.msg}): write a JSON object such as {example}") from None
    except RecursionError:
        raise ValueError(f"JSON nested too deeply: write a JSON object such as {example}") from None
    if not isinstance(found, dict):
        raise ValueError(f"JSON {_JSON_TYPES[type(found)]}, not an object: write one such as {example}")
    return found


def _parse_json_object(example: str) -> BeforeValidator:
    """A parser of JSON objects."""
    return BeforeValidator(lambda value: _json_object(value, example) if isinstance(value, str) else value)


def _parse_caption(value: object) -> object:
    """The stages of CAPTION_EXPORT_CAPTION with their weights. A stage alone has the weight 1."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("{"):
        return {value.strip(): 1.0} if value.strip() else {}
    weights = _json_object(value, '{"short": 1, "dense": 3}')
    for stage, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            raise ValueError(f"the weight of {stage!r} is {json.dumps(weight)}: give a number above 0")
    return weights


def _check_labels(labels: object) -> object:
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if not isinstance(value, str):
            raise ValueError(f"the label {name!r} is {json.dumps(value)}, not a string: put its value in quotes")
    return labels


LOCAL_LINK_URL = "http://127.0.0.1:3001"
"""Address of the galleries of a local root: Dagster's instance stores links, so that it must not change."""
_JSON_ARGUMENTS = ("engine_args", "chat_template_kwargs")
_DTYPES = {"half": "float16", "float": "float32"}
"""Aliases of number formats; the fingerprint contains the canonical name."""
_JSON_TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}: write a number, or leave the key out")


class Settings(BaseSettings):
    """The settings; the environment variable of ``root`` is ``CAPTION_ROOT``, and so on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    root: str = Field("data", description="Folder or `s3://bucket/prefix` for all outputs")
    source: str | None = Field(
        None, description="Folder or `s3://bucket/prefix` of the shards; may be read-only. Default: `<root>/shards`"
    )
    project: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$",
        description="Project name on a shared Dagster instance, used as the prefix of asset keys and partitions: up to "
        "40 letters, digits, `_` and `-`. Default: no prefix",
    )
    root_profile: str | None = Field(
        None,
        description="AWS profile for the root and for models in object storage. Default: the standard AWS variables",
    )
    source_profile: str | None = Field(
        None,
        description="AWS profile for the source and for the clips in its lists. Default: the root's if "
        "`CAPTION_SOURCE` is unset, else the standard AWS variables",
    )
    s3_anonymous: bool = Field(
        False, description="Read a public source, and the clips in its lists, without credentials"
    )
    s3_requester_pays: bool = Field(False, description="Accept the request costs of a source in requester-pays buckets")
    s3_path_style: bool | None = Field(
        None,
        description="Put the bucket's name into the path of S3 addresses instead of before their host. Default: true "
        "if `AWS_ENDPOINT_URL` is set",
    )
    cache: Path = Field(
        Path("~/.cache/caption-assets"),
        description="Local folder for model weights downloaded from the Hub or the root",
    )
    cache_gb: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Maximum size of that folder, in GiB; the least recently used models are removed first. Default: "
        "no limit",
    )
    verify_weights: bool = Field(
        False,
        description="Verify the hashes of all weight files on every run, in the mirror and in the cache, and download "
        "damaged files again. Default: verify only files whose size (in the cache, also modification time) changed",
    )
    model: str = Field(
        "sample",
        description="Model: `sample`, another key of the table of models, or the Hub id or folder (local or "
        "`s3://bucket/prefix`) of a video model that vLLM supports",
    )
    model_revision: str | None = Field(
        None, description="Commit of a model given by Hub id; for a folder, any word that identifies its contents"
    )
    model_like: str | None = Field(
        None,
        description="Model key that provides the frame sizes and engine defaults of a model given by Hub id or folder",
    )
    lora: str | None = Field(
        None,
        description="LoRA adapter for the model: Hub id or folder (local or `s3://bucket/prefix`). Default: none",
    )
    lora_revision: str | None = Field(
        None, description="Commit of an adapter given by Hub id; for a folder, any word that identifies its contents"
    )
    fp8: bool | None = Field(
        None, description="Quantize the language model to FP8; needs a GPU. Default: the model's default"
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
        description="vLLM's reasoning parser, such as `qwen3`, which removes reasoning from answers. Default: that of "
        "the model's family",
    )
    recipe: str | None = Field(
        None,
        description=f"Recipe: {', '.join(f'`{name}`' for name in BUILT_IN)}, or a YAML file (local or `s3://…`). "
        "Default: `general`; for the sample model, `sample`",
    )
    window_size: int = Field(256, ge=MIN_WINDOW_FRAMES, description="Size of a window, in source frames")
    remainder_threshold: int = Field(
        128,
        ge=MIN_WINDOW_FRAMES,
        description="Minimum size of a clip's last window, in source frames; a shorter one is merged into the previous "
        "window",
    )
    window_seconds: float | None = Field(
        None,
        ge=MIN_WINDOW_SECONDS,
        allow_inf_nan=False,
        description="Length of a window, in seconds; replaces the two settings above. A last window shorter than half "
        "of it is merged into the previous one. Default: windows are cut by frames",
    )
    sample_fps: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="Frames sampled for the model, per second of video"
    )
    min_frames: int = Field(4, ge=FRAME_FACTOR, description="Minimum number of frames sampled from a window")
    max_frames: int = Field(768, ge=FRAME_FACTOR, description="Maximum number of frames sampled from a window")
    temperature: float | None = Field(
        None,
        ge=0,
        le=MAX_TEMPERATURE,
        description="Sampling temperature. Default: 0.1; for a model given by Hub id or folder, that of its generation "
        "config, if it has one",
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Nucleus sampling probability. Default: 0.001, or as for the temperature"
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Repetition penalty. Default: 1.05, or as for the temperature",
    )
    max_output_tokens: int = Field(512, ge=1, description="Maximum length of an answer, in tokens")
    deterministic: bool = Field(
        False, description="Decode greedily with fixed seeds; overrides temperature and nucleus sampling"
    )
    regenerations: int = Field(
        1,
        ge=0,
        description="Maximum number of times that a caption with quality flags is regenerated; the best attempt is "
        "kept",
    )
    request_timeout_seconds: float = Field(600.0, gt=0, description="Timeout of a request to the engine, in seconds")
    max_engine_restarts: int = Field(
        10, ge=0, description="Maximum number of engine restarts in a run, for every 1,000 answers"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="Number of GPUs that share one replica of the model")
    data_parallel_size: int = Field(1, ge=1, description="Number of replicas of the model, each on its own GPUs")
    engine_args: Annotated[dict[str, Any], NoDecode, _parse_json_object('{"max_num_seqs": 8}')] = Field(
        default_factory=dict,
        description="Further arguments of vLLM's `AsyncEngineArgs`, as a JSON object. Credentials are rejected: "
        "Dagster's UI shows it",
    )
    decode_timeout_seconds: float = Field(
        120.0,
        gt=0,
        allow_inf_nan=False,
        description="Timeout of probing a clip or decoding a window, in seconds",
    )
    decode_memory_gb: float = Field(
        4.0, ge=1, allow_inf_nan=False, description="Maximum memory of a decode worker, in GiB"
    )
    decode_workers: int | None = Field(
        None,
        ge=1,
        description="Number of processes that probe or decode clips. Default: 8 for probing; for decoding, one per "
        "core, up to 8",
    )
    previews: bool = Field(
        True,
        description="Store a preview of each captioned window for the gallery: six small frames, 10 to 25 KB for "
        "filmed video",
    )
    frames_gb: float = Field(2.0, gt=0, description="Maximum memory for decoded frames of windows in progress, in GiB")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Fraction of GPU memory that the engine uses. Default: the model's, 0.85"
    )
    processor_cache_gb: float | None = Field(
        None, ge=0, description="Size of vLLM's cache of preprocessed videos, in GiB. Default: the model's, 4"
    )
    max_batched_tokens: int | None = Field(
        None, ge=1, description="Maximum number of tokens in an engine step. Default: the model's, 32768"
    )
    checkpoint_rows: int = Field(
        CHECKPOINT_ROWS, ge=1, description="Number of finished windows of a shard after which a checkpoint is written"
    )
    checkpoint_seconds: float = Field(
        CHECKPOINT_SECONDS,
        gt=0,
        allow_inf_nan=False,
        description="Maximum time from a finished window to its checkpoint, in seconds",
    )
    lease_seconds: float = Field(
        LEASE_SECONDS,
        ge=5,
        allow_inf_nan=False,
        description="Lifetime of a shard's lease without renewal, in seconds; another run may then claim the shard",
    )
    max_window_attempts: int = Field(
        MAX_ATTEMPTS,
        ge=1,
        description="Maximum number of requests for a window's caption, over all runs; a run makes about four. The "
        "row then stays failed",
    )
    log_level: Literal["info", "debug"] = Field(
        "info",
        description="What runs log to the console: `info` (progress, warnings and the reason of a failure) or `debug` "
        "(all of Dagster's events, stack traces, and what vLLM logs). Dagster's UI shows all events with both",
    )
    executor: Literal["in_process", "multiprocess", "k8s"] = Field(
        "in_process",
        description="Executor of a run's steps: `in_process`, in the run's process; `multiprocess`, one process per "
        "step; `k8s`, one Kubernetes pod per step",
    )
    step_service_account: str | None = Field(
        None, description="Kubernetes ServiceAccount of step pods. Default: that of the run's pod"
    )
    gpu_image: str | None = Field(
        None,
        description="Image of the captioning step's pod, with the engine; `{version}` is replaced by the project's "
        "version. Default: the image of the run's pod",
    )
    gpu_node_selector: Annotated[
        dict[str, str],
        NoDecode,
        BeforeValidator(_check_labels),  # runs after the parser: the last validator runs first
        _parse_json_object('{"nvidia.com/gpu.present": "true"}'),
    ] = Field(
        {"nvidia.com/gpu.present": "true"},
        description="Node selector of pods that need a GPU: node labels, as a JSON object",
    )
    metrics_port: int | None = Field(
        None,
        ge=1024,
        le=65535,
        description="Port of the captioning step's Prometheus metrics. Default: no metrics",
    )
    automate: bool = Field(
        False, description="Start the sensors and the schedule with the code location. Default: start them in the UI"
    )
    sensor_interval_seconds: int = Field(
        60, ge=1, description="Interval at which the sensor lists the source for new shards, in seconds"
    )
    shard_quiet_minutes: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Time without writes after which the sensor registers a shard, in minutes",
    )
    shard_marker: str | None = Field(
        None,
        description="Name of the marker object of a complete shard: `<shard>/<name>` for a folder, `<file>.<name>` for "
        "a tar or list. Default: no marker is needed",
    )
    max_removed_fraction: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Maximum fraction of the registered shards that may disappear from the source at once. If more "
        "disappear, or all, the sensor raises an alarm and changes nothing until a person confirms",
    )
    backfill_cron: str = Field(
        "*/10 * * * *",
        description="Cron expression, in UTC, of the schedule that requests missing captions, such as "
        "`0 20-23,0-6 * * *`",
    )
    backfill_concurrency: int = Field(
        256, ge=1, description="Maximum number of shards in progress at once; the schedule requests none beyond it"
    )
    shard_attempts: int = Field(
        3, ge=1, description="Maximum number of runs that the schedule requests for a shard with unchanged content"
    )
    overdue_hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Time without captions after which a shard raises an alert, in hours. Default: no alert",
    )
    alert_webhook: SecretStr | None = Field(
        None,
        description="URL of a Slack incoming webhook for alerts; a secret. Default: alerts go to the daemon's log",
    )
    shards_per_run: int = Field(
        16, ge=1, description="Maximum number of shards that one run of a backfill captions with one engine start"
    )
    gpu_hour_price: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Price of a GPU hour, from which the UI computes costs. Default: no costs are shown",
    )
    link_url: str | None = Field(
        None,
        description="URL under which the galleries are served (`caption-assets dev`, `caption-assets gallery --serve`, "
        f"the cluster's service); links in the UI begin with it. Default: {LOCAL_LINK_URL} for a local root; for one "
        "in object storage the UI shows addresses",
    )
    max_failed_fraction: float = Field(
        MAX_FAILED_FRACTION,
        ge=0,
        le=1,
        description="Maximum fraction of a shard's captionable windows that may fail. The step fails if more fail than "
        "this and `CAPTION_MAX_FAILED_WINDOWS` allow",
    )
    max_failed_windows: int = Field(
        ALLOWANCE,
        ge=0,
        description="Number of captionable windows that may fail in any shard, however small, unless all fail",
    )
    max_unreadable_fraction: float = Field(
        MAX_UNREADABLE_FRACTION,
        ge=0,
        le=1,
        description="Maximum fraction of a shard's clips that may be unreadable. The step fails if more are than this "
        "and `CAPTION_MAX_UNREADABLE_CLIPS` allow",
    )
    max_unreadable_clips: int = Field(
        ALLOWANCE,
        ge=0,
        description="Number of clips that may be unreadable in any shard, however small, unless all are",
    )
    export: Format | None = Field(
        None,
        description="Format of the training dataset: `webdataset` and `energon`, tar files with the clips; `jsonl` and "
        "`csv`, lines with their URIs; `pairs`, video files with text files; `ltx`, `videox-fun`, `fastvideo`, "
        "`open-sora`, `musubi` and `cosmos`, video files with the lines of a trainer; `chat` and `conversations`, "
        "questions about the videos. Default: no asset `captioned_dataset`",
    )
    export_file_gb: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum size of a file of the training dataset, in GiB; a larger clip gets its own file",
    )
    export_license: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="License named on the dataset card, as spelled on the Hub, such as `cc-by-4.0`. Default: none",
    )

    export_cut: Cut | None = Field(
        None,
        description="Files of single windows in the training dataset: `none`; `exact`, an MP4 file of exactly the "
        "window's frames, copied where possible and otherwise encoded anew; or `remux`, the window's part of the "
        "stream as it is. Default: `exact` for formats whose trainers read a file from its beginning, otherwise `none`",
    )
    export_fps: float | None = Field(
        None,
        gt=0,
        le=240,
        description="Frame rate of window files, constant, with `CAPTION_EXPORT_CUT=exact`. Default: the clip's",
    )
    export_longest_side: int | None = Field(
        None,
        ge=16,
        le=MAX_LONGEST_SIDE,
        description="Maximum width and height of window files, in pixels, with `CAPTION_EXPORT_CUT=exact`; smaller "
        "ones are not enlarged. Default: the clip's",
    )
    export_seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Maximum duration of window files, in seconds, with `CAPTION_EXPORT_CUT=exact`; the rest of a "
        "longer window is dropped. Default: whole windows",
    )
    export_audio: bool = Field(False, description="Whether window files have the clip's audio")
    export_where: str | None = Field(
        None,
        description="SQL condition on a window's row in the manifest and in the table of each stage, such as "
        "`alignment.score >= 0.6 and clip_seconds > 2`. Only windows for which it is true are exported. Default: "
        "windows with a caption of each stage, and no flag that causes a regeneration on a caption that is trained on",
    )

    export_caption: Annotated[dict[str, float], NoDecode, BeforeValidator(_parse_caption)] = Field(
        default_factory=dict,
        description="Stage whose caption is the text to train on, or a JSON object with the weights of several, such "
        'as `{"short": 1, "dense": 3}`: each window has the text of one of them, drawn by the weights. Default: the '
        "last stage with text",
    )
    export_columns: Annotated[dict[str, Any], NoDecode, _parse_json_object('{"path": "video"}')] = Field(
        default_factory=dict,
        description="Columns of `jsonl` and `csv`, as a JSON object: for each column the name of one of the dataset's, "
        'or `{"const": value}`, or an object of further columns. Default: the dataset\'s columns',
    )
    export_folder: str | None = Field(
        None,
        description="Folder of the dataset on the trainer's machine, with which paths in lines begin. Default: paths "
        "are relative to the dataset's folder; with `musubi`, `open-sora`, `fastvideo` and `chat` they are absolute, "
        "if the root is local",
    )
    export_instruction: str = Field(
        "Describe the video.", min_length=1, description="Question of `chat` and `conversations`"
    )

    export_max_duplicates: int | None = Field(
        None,
        ge=1,
        description="Approximate maximum number of windows with the same text, ignoring case and punctuation, over the "
        "whole dataset; which ones are kept does not depend on the order of exports. Default: no maximum",
    )
    export_tokenizer: str | None = Field(
        None,
        description="Tokenizer of the trainer, with which the texts of the dataset are counted: Hub id (`org/name` or "
        "`org/name/folder`) or folder (local or `s3://bucket/prefix`) with `tokenizer.json`. Default: none",
    )
    export_tokenizer_revision: str | None = Field(None, description="Commit of a tokenizer given by Hub id")
    export_max_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum length of a text of the dataset, in tokens, including the special ones that the tokenizer "
        "adds. Default: the tokenizer's `model_max_length`",
    )
    export_over_limit: OverLimit = Field(
        OverLimit.KEEP,
        description="What becomes of a text over that limit: `keep`; `cut`, at the end of a sentence if one fits; "
        "`leave_out`; or `shorter`, the longest caption of another stage that fits, or a cut if there is none",
    )

    @field_validator("root", "source", "model", "lora", "recipe", "gpu_image", "link_url", "export_tokenizer")
    @classmethod
    def _without_credentials(cls, value: str | None) -> str | None:
        if value is not None and is_credential(value):
            raise ValueError(
                "the URL contains credentials, which Dagster's UI would show: remove them; set those of a store as "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by a profile"
            )
        return value

    @field_validator("export_instruction")
    @classmethod
    def _without_tags(cls, instruction: str) -> str:
        if without_tags(instruction) != instruction:
            raise ValueError(
                f"{instruction!r} contains a tag such as {VIDEO_TAG}, but the formats add one for each video, and "
                "trainers refuse a different number of tags: remove it"
            )
        return instruction

    @field_validator("engine_args", "chat_template_kwargs")
    @classmethod
    def _arguments_without_credentials(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if found := find_credential(arguments):
            remedy = "set HF_TOKEN" if is_hub_token(*found) else "set the environment variable that its library reads"
            raise ValueError(f"{found[0]} is a credential, which Dagster's UI would show: remove it, and {remedy}")
        return arguments

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _ignore_service_address(cls, port: object) -> object:
        """Ignore a value set by Kubernetes: a Service named ``caption-metrics`` has a variable of the same name."""
        return None if isinstance(port, str) and is_service_address(port) else port

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
        try:
            _ = self._graph
        except (RecipeError, StoreError) as error:
            raise ValueError(f"CAPTION_RECIPE={self.recipe!r}: {error}") from None
        self.cut.check()
        try:
            _ = self._budget
        except UnknownModel as error:
            raise ValueError(f"CAPTION_EXPORT_TOKENIZER={self.export_tokenizer!r}: {error}") from None
        if self.export_tokenizer is None and (self.export_max_tokens or self.export_over_limit is not OverLimit.KEEP):
            raise ValueError(
                f"CAPTION_EXPORT_MAX_TOKENS={self.export_max_tokens} and CAPTION_EXPORT_OVER_LIMIT="
                f"{self.export_over_limit} need a tokenizer: set CAPTION_EXPORT_TOKENIZER, or unset both"
            )
        if self.export_where is not None:
            try:
                Condition(self.export_where, self._graph.stages).check()
            except ConditionError as error:
                raise ValueError(f"CAPTION_EXPORT_WHERE={self.export_where!r}: {error}") from None
        self._check_export()
        if self.remainder_threshold > self.window_size:
            raise ValueError(
                f"CAPTION_REMAINDER_THRESHOLD={self.remainder_threshold} is above CAPTION_WINDOW_SIZE="
                f"{self.window_size}: lower the first or raise the second"
            )
        if self.s3_anonymous and self.s3_requester_pays:
            raise ValueError(
                "CAPTION_S3_ANONYMOUS and CAPTION_S3_REQUESTER_PAYS are both true, but an anonymous request cannot be "
                "charged: unset one of them"
            )
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"CAPTION_MIN_FRAMES={self.min_frames} is above CAPTION_MAX_FRAMES={self.max_frames}: "
                "lower the first or raise the second"
            )
        return self

    @property
    def source_url(self) -> str:
        """URL of the folder of shards."""
        return self.source or f"{self.root.rstrip('/')}/shards"

    @property
    def web_url(self) -> str | None:
        """URL that links to the root's galleries and tables begin with; None if there are no links."""
        is_local = split_protocol(self.root)[0] in (None, "file")
        return self.link_url or (LOCAL_LINK_URL if is_local else None)

    @property
    def storage(self) -> StorageConfig:
        """The configuration of the root and the source."""
        # A source within the root has the root's profile.
        profile = self.source_profile or (self.root_profile if self.source is None else None)
        return StorageConfig(
            self.root,
            self.source_url,
            Access(self.root_profile, path_style=self.s3_path_style),
            Access(profile, self.s3_anonymous, self.s3_requester_pays, self.s3_path_style),
        )

    @property
    def weights(self) -> CacheConfig:
        """The configuration of the cache of models."""
        return CacheConfig(self.cache, self.cache_gb, self.verify_weights)

    @property
    def decode(self) -> SandboxLimits:
        """The limits of decode workers."""
        return SandboxLimits(self.decode_timeout_seconds, self.decode_memory_gb)

    @property
    def engine(self) -> EngineConfig:
        """The configuration of the engine: the settings with the names of its fields."""
        return EngineConfig(**{field.name: getattr(self, field.name) for field in fields(EngineConfig)})

    @property
    def variant(self) -> Variant:
        """The model."""
        return find_variant(self.model, self.model_revision, self.model_like)

    @property
    def adapter(self) -> Lora | None:
        """The LoRA adapter, if there is one."""
        if self.lora is None:
            if self.lora_revision is not None:
                raise UnknownModel("CAPTION_LORA_REVISION is set without an adapter: set CAPTION_LORA, or unset it")
            return None
        return find_lora(self.lora, self.lora_revision)

    @property
    def video_checkpoints(self) -> tuple[Checkpoint, ...]:
        """The video model, and its adapter if there is one."""
        return (self.variant, self.adapter) if self.adapter else (self.variant,)

    @property
    def language_models(self) -> tuple[Variant, ...]:
        """The language models of the recipe's stages."""
        return tuple(step.variant for step in self.caption_recipe.steps[1:])

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints of the asset ``model_weights``, those of the video model first."""
        found: dict[str, Checkpoint] = {}
        for checkpoint in (*self.video_checkpoints, *self.language_models):
            found.setdefault(checkpoint.folder, checkpoint)  # a video model may answer stages without video too
        return tuple(found.values())

    @property
    def config_overrides(self) -> dict[str, Any]:
        """Overrides of the video model's ``config.json``."""
        found = self.engine_args.get("hf_overrides")
        return found if isinstance(found, dict) else {}

    @property
    def weights_code(self) -> str:
        """Code version of the asset ``model_weights``: the names and revisions of its checkpoints."""
        return "+".join(checkpoint.folder for checkpoint in self.checkpoints)

    @property
    def windowing(self) -> Windowing:
        """The windowing of clips."""
        return Windowing(self.window_size, self.remainder_threshold, self.window_seconds)

    @property
    def gpus(self) -> int:
        """Number of GPUs of the engine; 0 for models that run on the CPU."""
        uses_gpu = any(step.variant.gpus for step in self.caption_recipe.steps)
        return self.tensor_parallel_size * self.data_parallel_size if uses_gpu else 0

    @property
    def failure_limits(self) -> FailureLimits:
        """The limits on the failures of a shard."""
        limits = FailureLimits()
        return FailureLimits(
            replace(limits.unreadable, fraction=self.max_unreadable_fraction, number=self.max_unreadable_clips),
            replace(limits.failed, fraction=self.max_failed_fraction, number=self.max_failed_windows),
        )

    @property
    def caption_recipe(self) -> Recipe:
        """The recipe of the captions."""
        return Recipe(
            variant=self.variant,
            fp8=self.variant.fp8 if self.fp8 is None else self.fp8,
            graph=self._graph,
            frames=FrameSampling(self.sample_fps, self.min_frames, self.max_frames),
            generation=self._generation,
            regenerations=self.regenerations,
            engine={STEP_TOKENS: self.max_batched_tokens, **self.engine_args}
            if self.max_batched_tokens
            else self.engine_args,
            lora=self.adapter,
            dtype=None if self.dtype == "auto" else _DTYPES.get(self.dtype, self.dtype),
            chat_template_kwargs=self.chat_template_kwargs,
            reasoning_parser=self.reasoning_parser,
        )

    def with_recipe(self, name: str | None) -> Recipe:
        """The recipe of the captions, with the stages of another recipe unless ``name`` is None.

        Raises:
            RecipeError: if there is no such recipe, or its file is invalid.
            StoreError: if the file cannot be read.
        """
        found = self.caption_recipe
        return found if name is None else replace(found, graph=read_recipe(name, self.storage.root_access))

    def _check_export(self) -> None:
        """Validate the settings of the training dataset.

        Raises:
            ValueError: if a setting names an unknown stage or column, or has no effect.
        """
        stages = [stage.name for stage in self._graph.stages]
        if unknown := [name for name in self.export_caption if name not in stages]:
            raise ValueError(
                f"CAPTION_EXPORT_CAPTION names {unknown[0]!r}: the recipe's stages are {', '.join(stages)}"
            )
        if self.export_columns and self.export is not None and not self.export.has_own_columns:
            raise ValueError(
                f"CAPTION_EXPORT_COLUMNS has no effect with CAPTION_EXPORT={self.export}: unset it, or set "
                "CAPTION_EXPORT to jsonl or csv"
            )
        if self.dataset is not None:
            try:
                layout_of(self.dataset)
            except CaptionAssetsError as error:
                raise ValueError(str(error)) from None

    @property
    def dataset(self) -> ExportConfig | None:
        """The configuration of the training dataset, if there is one."""
        if self.export is None:
            return None
        return ExportConfig(
            self.export,
            int(self.export_file_gb * 2**30),
            self._graph,
            self.failure_limits,
            self.export_license,
            budget=self._budget,
            max_duplicates=self.export_max_duplicates,
            where=self.export_where,
            texts=self.export_caption,
            columns=self.export_columns,
            folder=self._dataset_folder(self.export),
            instruction=self.export_instruction,
            cut=self.cut,
        )

    @property
    def cut(self) -> CutConfig:
        """The configuration of window files."""
        default = self.export.default_cut if self.export else Cut.NONE
        cut = default if self.export_cut is None else self.export_cut
        return CutConfig(cut, self.export_fps, self.export_longest_side, self.export_seconds, self.export_audio)

    def _dataset_folder(self, format: Format) -> str | None:
        if self.export_folder:
            return self.export_folder.rstrip("/") or "/"
        is_local = "://" not in self.root
        return str(Path(self.root, DATASET).resolve()) if is_local and format.has_full_paths else None

    @property
    def _budget(self) -> BudgetConfig | None:
        """The budget of the dataset's texts in tokens, if there is one."""
        if self.export_tokenizer is None:
            return None
        tokenizer = find_tokenizer(self.export_tokenizer, self.export_tokenizer_revision)
        return BudgetConfig(tokenizer, self.weights, self.export_max_tokens, self.export_over_limit)

    @cached_property
    def _graph(self) -> StageGraph:
        """The stages of the recipe. The file is read once."""
        return read_recipe(self.recipe or self.variant.recipe, self.storage.root_access)

    @property
    def _generation(self) -> SamplingParams:
        given = SamplingParams(self.temperature, self.top_p, self.repetition_penalty, self.max_output_tokens)
        generation = given if self._has_own_sampling else given.with_defaults({}, DEFAULTS)
        if self.deterministic:
            return replace(
                DETERMINISTIC,
                repetition_penalty=generation.repetition_penalty,
                max_output_tokens=generation.max_output_tokens,
            )
        return generation

    @property
    def _has_own_sampling(self) -> bool:
        """Whether the sampling defaults are those of the model's files."""
        return self.model not in VARIANTS and self.model_like is None


def load_settings(**given: Any) -> Settings:
    """The settings of this process's environment.

    A variable with the settings' prefix that resembles no setting is ignored with a warning, because it may be another
    program's.

    Args:
        given: values of settings by field; they take precedence over the environment.

    Raises:
        SettingsError: if a value is invalid, or an unknown variable resembles a setting.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    problems = []
    for unknown in unknown_settings(os.environ, known):
        if unknown.suggestions:
            problems.append(str(unknown))
        else:
            logger.warning("Ignored the unknown setting %s; see docs/reference/settings.md", unknown.name)
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems += [_explain(detail, given) for detail in error.errors()]
    if problems:
        raise SettingsError("; ".join(problems))
    return settings


def _explain(detail: Any, given: Mapping[str, Any]) -> str:
    """A one-line message for a validation error: variable, value, problem."""
    problem = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return problem
    variable = PREFIX + str(detail["loc"][0]).upper()
    value = str(given.get(str(detail["loc"][0]), os.environ.get(variable, "")))
    hidden = mentions_credential(value) if detail["loc"][0] in _JSON_ARGUMENTS else is_credential(value)
    return f"{variable}={'…' if hidden else repr(value)}: {problem}"
