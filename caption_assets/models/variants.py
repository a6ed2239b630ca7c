"""The table of models: each key's weights, frame sizes and engine defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from caption_assets.errors import CaptionAssetsError
from caption_assets.models.checkpoint import HUB_ID, REVISION, Checkpoint, as_folder, is_folder

UNPINNED = ""
"""Revision of a model without a pinned commit: the user chooses one."""


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Limits of a window's frames, in pixels. The defaults are the reference's for Qwen2.5-VL (NeMo Curator)."""

    factor: int = 28
    """The sides of a frame are multiples of this (patch size times merge size)."""
    min_pixels: int = 128 * 28 * 28
    """Minimum area of a frame."""
    max_pixels: int = 768 * 28 * 28
    """Maximum area of a frame."""
    total_pixels: int = 24576 * 28 * 28
    """Maximum total area of a window's frames."""

    def with_factor(self, factor: int) -> PixelLimits:
        """The same limits, counted in squares of ``factor`` pixels."""
        if factor == self.factor:
            return self
        areas = (area * factor**2 // self.factor**2 for area in (self.min_pixels, self.max_pixels, self.total_pixels))
        return PixelLimits(factor, *areas)


@dataclass(frozen=True, slots=True)
class Variant(Checkpoint):
    """A model and its defaults."""

    pixels: PixelLimits = field(default_factory=PixelLimits)
    dtype: str = "bfloat16"
    """vLLM's name for the number format of weights and activations; ``auto`` is the format of the model's files."""
    fp8: bool = True
    """Whether the language model is quantized to FP8 on a GPU."""
    max_model_len: int | None = 32768
    """Maximum length of prompt and answer together, in tokens; None for the model's maximum that fits into memory."""
    gpus: int = 1
    """Minimum number of GPUs per replica; 0 for a model that runs on the CPU."""
    cpus: int = 6
    """Number of cores that captioning requests per GPU, or in total without one; most of them decode. A node with one
    GPU often has 8 cores, and reserves a part of one."""
    host_gb: float = 12.0
    """Estimated main memory of the engine's processes per GPU, or in total without one, in GiB: CUDA, torch, and
    weights while they are loaded."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM's ``AsyncEngineArgs`` that differ from the project's defaults."""
    recipe: str = "general"
    """Name of the model's default recipe."""
    license: str = ""
    """License of the weights, as stated on their card; empty for a model without a key."""
    parameters: float = 0.0
    """Number of parameters, in 10⁹; 0 for a model without a key."""
    quantizable: float = 0.0
    """Number of parameters that FP8 stores in one byte instead of two, in 10⁹: the matrices of the language model."""


class UnknownModel(CaptionAssetsError):
    """A model or adapter that the settings do not identify."""


_QWEN3_PIXELS = PixelLimits(factor=32, min_pixels=128 * 32**2, max_pixels=768 * 32**2, total_pixels=24576 * 32**2)
"""Patches of 16 pixels, merged two by two; the same numbers of tokens as Qwen2.5-VL."""
APACHE = "Apache-2.0"


def _qwen25(hub_id: str, revision: str, **fields: Any) -> Variant:
    """Qwen2.5-VL or a fine-tune of it."""
    return Variant(hub_id, revision, **{"license": APACHE, **fields})


def _qwen3(hub_id: str, revision: str, **fields: Any) -> Variant:
    """Qwen3-VL."""
    return Variant(hub_id, revision, pixels=_QWEN3_PIXELS, license=APACHE, **fields)


def _qwen35(hub_id: str, revision: str, **fields: Any) -> Variant:
    """Qwen3.5 or 3.6, which have the video processor of Qwen3-VL. FP8 of their linear attention is untested here."""
    return Variant(hub_id, revision, pixels=_QWEN3_PIXELS, license=APACHE, fp8=False, **fields)


# The revisions come from public repositories: from the table of foldl/chatllm.cpp (docs/models.md at 4a4310e), which
# links to the commit of each model; those marked * from cache paths (models--<org>--<name>/snapshots/<commit>) and
# revision settings of at least four public repositories that agree. The parameters were counted on configurations of
# these sizes in transformers 5.19.
QWEN25 = _qwen25(
    "Qwen/Qwen2.5-VL-7B-Instruct", "cc594898137f460bfe9f0759e9844b3ce807cfb5", parameters=8.292, quantizable=6.525
)
QWEN3 = _qwen3(
    "Qwen/Qwen3-VL-8B-Instruct", "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b", parameters=8.767, quantizable=6.946
)
SAMPLE = Variant(
    hub_id="caption-assets/sample-qwen2.5-vl",
    revision="7daac99804c1",
    bundled=True,
    recipe="sample",
    # A little over 16 tokens per frame: at any aspect ratio from 9:16 to 16:9 the shorter side has 3 (4 if square), so
    # that a size relative to that side is visible in pixels.
    pixels=PixelLimits(min_pixels=16 * 28 * 28, max_pixels=16 * 28 * 28 + 200, total_pixels=200 * 28 * 28),
    dtype="float32",
    fp8=False,
    max_model_len=2048,
    gpus=0,
    cpus=1,
    host_gb=2.0,
    engine={
        "enforce_eager": True,
        "max_num_batched_tokens": 1024,  # small steps keep the running requests responsive
        "max_num_seqs": 32,
        "kv_cache_memory_bytes": 256 << 20,
        "mm_processor_cache_gb": 0.5,
        # As on one GPU, the model runs in the engine's core process. With the alias "uni", vLLM starts a worker process
        # on the CPU, and the two busy-wait for each other.
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
        # The CPU engine's default of 128 tokens is longer than a sample video: no block of it would be cached.
        "block_size": 32,
    },
)
VARIANTS: dict[str, Variant] = {
    "qwen": QWEN25,
    "qwen2.5": QWEN25,
    "qwen2.5-3b": _qwen25(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "66285546d2b821cf421d4f5eb2576359d3770cd3",
        license="Qwen Research (no commercial use)",
        parameters=3.755,
        quantizable=2.775,
    ),
    "qwen2.5-7b": QWEN25,
    "qwen2.5-32b": _qwen25(
        "Qwen/Qwen2.5-VL-32B-Instruct",
        "7cfb30d71a1f4f49a57592323337a4a4727301da",  # *
        parameters=33.453,
        quantizable=31.206,
    ),
    "qwen2.5-72b": _qwen25(
        "Qwen/Qwen2.5-VL-72B-Instruct",
        "89c86200743eec961a297729e7990e8f2ddbc4c5",  # *
        license="Qwen",
        parameters=73.411,
        quantizable=70.213,
    ),
    "skycaptioner": _qwen25(
        "Skywork/SkyCaptioner-V1",
        UNPINNED,  # found in no public file
        parameters=8.292,
        quantizable=6.525,
    ),
    "qwen3": QWEN3,
    "qwen3-4b": _qwen3(
        "Qwen/Qwen3-VL-4B-Instruct", "ebb281ec70b05090aa6165b016eac8ec08e71b17", parameters=4.438, quantizable=3.633
    ),
    "qwen3-8b": QWEN3,
    "qwen3-32b": _qwen3(
        "Qwen/Qwen3-VL-32B-Instruct",
        "0cfaf48183f594c314753d30a4c4974bc75f3ccb",  # *
        parameters=33.357,
        quantizable=31.206,
    ),
    "qwen3-30b-a3b": _qwen3(
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        "9c4b90e1e4ba969fd3b5378b57d966d725f1b86c",
        parameters=31.071,
        quantizable=29.91,
    ),
    "qwen3.5-0.8b": _qwen35(
        "Qwen/Qwen3.5-0.8B", "2fc06364715b967f1860aea9cf38778875588b17", parameters=0.853, quantizable=0.498
    ),
    "qwen3.5-2b": _qwen35(
        "Qwen/Qwen3.5-2B", "15852e8c16360a2fea060d615a32b45270f8a8fc", parameters=2.213, quantizable=1.373
    ),
    "qwen3.5-4b": _qwen35(
        "Qwen/Qwen3.5-4B", "851bf6e806efd8d0a36b00ddf55e13ccb7b8cd0a", parameters=4.539, quantizable=3.57
    ),
    "qwen3.5-9b": _qwen35(
        "Qwen/Qwen3.5-9B", "c202236235762e1c871ad0ccb60c8ee5ba337b9a", parameters=9.41, quantizable=6.919
    ),
    "qwen3.5-27b": _qwen35(
        "Qwen/Qwen3.5-27B",
        "fc05daec18b0a78c049392ed2e771dde82bdf654",  # *
        parameters=27.357,
        quantizable=24.353,
    ),
    "qwen3.5-35b-a3b": _qwen35(
        "Qwen/Qwen3.5-35B-A3B",
        "59d61f3ce65a6d9863b86d2e96597125219dc754",  # *
        parameters=35.107,
        quantizable=33.643,
    ),
    "qwen3.5-122b-a10b": _qwen35(
        "Qwen/Qwen3.5-122B-A10B",
        "b000b2eb18a7f4cdf3153c4215842da339e09d99",  # *
        parameters=122.563,
        quantizable=120.586,
    ),
    "qwen3.5-397b-a17b": _qwen35(
        "Qwen/Qwen3.5-397B-A17B",
        UNPINNED,  # public files name several
        parameters=396.802,
        quantizable=394.312,
    ),
    "qwen3.6-27b": _qwen35(
        "Qwen/Qwen3.6-27B", "6a9e13bd6fc8f0983b9b99948120bc37f49c13e9", parameters=27.357, quantizable=24.353
    ),
    "qwen3.6-35b-a3b": _qwen35(
        "Qwen/Qwen3.6-35B-A3B", "995ad96eacd98c81ed38be0c5b274b04031597b0", parameters=35.107, quantizable=33.643
    ),
    "glm-4.6v-flash": Variant(
        "zai-org/GLM-4.6V-Flash",
        "411bb4d77144a3f03accbf4b780f5acb8b7cde4e",
        fp8=False,
        license="MIT",
        parameters=10.293,
        quantizable=8.158,
    ),
    "internvl3.5-8b": Variant(
        "OpenGVLab/InternVL3_5-8B-HF",
        "741a7d03020411e666c6109218ab71e08151ef86",  # *
        fp8=False,
        license=APACHE,
        parameters=8.528,
        quantizable=6.946,
    ),
    "sample": SAMPLE,
}
"""The models by key. ``qwen`` is NeMo Curator's key."""


def find_variant(
    model: str,
    revision: str | None = None,
    like: str | None = None,
    *,
    names: tuple[str, str] = ("CAPTION_MODEL", "CAPTION_MODEL_REVISION"),
) -> Variant:
    """The model that the settings or a recipe name.

    Args:
        model: a key of ``VARIANTS``, a Hub id (``org/name``), or a folder (``/…``, ``./…``, ``~/…`` or ``s3://…``).
        revision: commit of a model given by Hub id; for a folder, any word that identifies its contents.
        like: key of the model that provides frame sizes and engine defaults for a model given by Hub id or folder, such
            as the base of a fine-tune that is trained on other sizes than the reference's.
        names: names of the first two in messages.

    Raises:
        UnknownModel: if there is no such model, or the revision is missing or not applicable.
    """
    if (known := VARIANTS.get(model)) is not None:
        return _of_key(model, known, revision, like, names)
    keys = ", ".join(sorted(VARIANTS))
    if not is_folder(model) and not HUB_ID.fullmatch(model):
        raise UnknownModel(
            f"unknown model {model!r}: choose one of {keys}, or give a Hub id (org/name) or a folder (/path/to/it or "
            "s3://bucket/path/to/it)"
        )
    if like is not None and like not in VARIANTS:
        raise UnknownModel(f"CAPTION_MODEL_LIKE is {like!r}: choose one of {keys}, or unset it")
    if revision is None or not REVISION.fullmatch(revision):
        key = next((key for key, known in VARIANTS.items() if known.hub_id == model and known.revision), None)
        raise UnknownModel(
            f"model {model!r} needs {names[1]} (it is {revision!r}): the commit on the Hub, or for a folder any word "
            "that identifies its contents" + (f"; or set {names[0]} to {key}, whose revision is pinned" if key else "")
        )
    base = (
        replace(VARIANTS[like], bundled=False, license="", parameters=0.0, quantizable=0.0)
        if like
        else Variant("", "", dtype="auto", fp8=False)
    )
    base = replace(base, max_model_len=None)
    if is_folder(model):
        path, hub_id = as_folder(model)
        return replace(base, hub_id=hub_id, revision=revision, path=path)
    return replace(base, hub_id=model, revision=revision)


def find_language_model(model: str, revision: str | None) -> Variant:
    """The language model that a stage of a recipe names.

    Args:
        model: a key of ``VARIANTS``, a Hub id or a folder; see ``find_variant``.
        revision: commit of a model given by Hub id; for a folder, any word that identifies its contents.

    Raises:
        UnknownModel: if there is no such model, or the revision is missing or not applicable.
    """
    return replace(find_variant(model, revision, names=("model", "revision")), video=False)


def _of_key(key: str, variant: Variant, revision: str | None, like: str | None, names: tuple[str, str]) -> Variant:
    """A model by key, at its pinned revision, or at the user's if it has none."""
    if like is not None:
        raise UnknownModel(f"model {key!r} has its own defaults: unset CAPTION_MODEL_LIKE")
    if variant.revision != UNPINNED:
        if revision is not None:
            raise UnknownModel(
                f"model {key!r} has a pinned revision: unset {names[1]}, or set {names[0]} to {variant.hub_id} to "
                "choose another"
            )
        return variant
    if revision is None or not REVISION.fullmatch(revision):
        raise UnknownModel(
            f"model {key!r} ({variant.hub_id}) has no pinned revision: set {names[1]} (it is {revision!r}) to one of "
            f"the commits at https://huggingface.co/{variant.hub_id}/commits/main"
        )
    return replace(variant, revision=revision)
