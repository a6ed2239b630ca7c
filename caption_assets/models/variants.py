"""The models by key, each with the revision of its weights, its frame sizes and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from caption_assets.errors import CaptionAssetsError
from caption_assets.models.checkpoint import HUB_ID, REVISION, Checkpoint, as_folder, is_folder

UNPINNED = ""
"""Revision of a model whose commit is not known here, and which the user gives."""


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """How many pixels a window's frames may have. Defaults are the reference's for Qwen2.5-VL (NeMo Curator)."""

    factor: int = 28
    """Sides of a frame are multiples of this (patch size times merge size), in pixels."""
    min_pixels: int = 128 * 28 * 28
    """Least area of one frame."""
    max_pixels: int = 768 * 28 * 28
    """Largest area of one frame."""
    total_pixels: int = 24576 * 28 * 28
    """Largest area of all frames of a window together."""

    def with_factor(self, factor: int) -> PixelLimits:
        """The same limits, counted in squares of ``factor`` pixels."""
        if factor == self.factor:
            return self
        areas = (area * factor**2 // self.factor**2 for area in (self.min_pixels, self.max_pixels, self.total_pixels))
        return PixelLimits(factor, *areas)


@dataclass(frozen=True, slots=True)
class Variant(Checkpoint):
    """A model, and how captions are made with it."""

    pixels: PixelLimits = field(default_factory=PixelLimits)
    dtype: str = "bfloat16"
    """Number format of weights and activations by vLLM's name; ``auto`` is that of the model's files."""
    fp8: bool = True
    """Whether the language model is quantised to FP8 where there is a GPU."""
    max_model_len: int | None = 32768
    """Maximum length of prompt and answer together, in tokens; None is the model's own, as far as memory allows."""
    gpus: int = 1
    """GPUs that one replica needs at least; 0 for a model that runs on the CPU."""
    cpus: int = 6
    """Cores that captioning asks for, for each GPU, or in all where there is none: most of them decode. A node with one
    GPU often has 8, some of a core of which is its own."""
    host_gb: float = 12.0
    """Main memory of the engine's processes for each GPU, or in all where there is none, in GiB: CUDA's, torch's, and
    weights on their way. An estimate."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM's ``AsyncEngineArgs`` that this model wants otherwise than the project's defaults."""
    license: str = ""
    """Licence of the weights, as their card states it; empty for a model without a key."""
    parameters: float = 0.0
    """Number of parameters, in 10⁹; 0 for a model without a key."""
    quantisable: float = 0.0
    """Those of them that FP8 stores in one byte instead of two, in 10⁹: matrices of the language model's layers."""


class UnknownModel(CaptionAssetsError):
    """A model key that no variant has."""


_QWEN3_PIXELS = PixelLimits(factor=32, min_pixels=128 * 32**2, max_pixels=768 * 32**2, total_pixels=24576 * 32**2)
"""Patches of 16 pixels, merged two by two; the same numbers of tokens as Qwen2.5-VL."""
APACHE = "Apache-2.0"


def _qwen25(hub_id: str, revision: str, **facts: Any) -> Variant:
    """Qwen2.5-VL or a fine-tune of it."""
    return Variant(hub_id, revision, **{"license": APACHE, **facts})


def _qwen3(hub_id: str, revision: str, **facts: Any) -> Variant:
    """Qwen3-VL."""
    return Variant(hub_id, revision, pixels=_QWEN3_PIXELS, license=APACHE, **facts)


def _qwen35(hub_id: str, revision: str, **facts: Any) -> Variant:
    """Qwen3.5 or 3.6, which have the video processor of Qwen3-VL. FP8 of their linear attention is untested here."""
    return Variant(hub_id, revision, pixels=_QWEN3_PIXELS, license=APACHE, fp8=False, **facts)


# Revisions were read in public repositories: in the table of foldl/chatllm.cpp (docs/models.md at 4a4310e), which links
# to the commit of each model; those marked * in the model cache's paths (models--<org>--<name>/snapshots/<commit>) and
# revision settings of at least four public repositories that agree, found by searching GitHub's files for the commit.
# Parameters were counted on configurations of these sizes in transformers 5.19.
QWEN25 = _qwen25(
    "Qwen/Qwen2.5-VL-7B-Instruct", "cc594898137f460bfe9f0759e9844b3ce807cfb5", parameters=8.292, quantisable=6.525
)
QWEN3 = _qwen3(
    "Qwen/Qwen3-VL-8B-Instruct", "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b", parameters=8.767, quantisable=6.946
)
SAMPLE = Variant(
    hub_id="caption-assets/sample-qwen2.5-vl",
    revision="df6e68bd6004",
    bundled=True,
    # A little over 16 tokens a frame: at any aspect from 9:16 to 16:9 the shorter side has 3 (4 if square), so that a
    # size relative to that side is seen in pixels.
    pixels=PixelLimits(min_pixels=16 * 28 * 28, max_pixels=16 * 28 * 28 + 200, total_pixels=200 * 28 * 28),
    dtype="float32",
    fp8=False,
    max_model_len=2048,
    gpus=0,
    cpus=1,
    host_gb=2.0,
    engine={
        "enforce_eager": True,
        "max_num_batched_tokens": 1024,  # the smaller a step, the sooner the answers under way go on
        "max_num_seqs": 32,
        "kv_cache_memory_bytes": 256 << 20,
        "mm_processor_cache_gb": 0.5,
        # As on one GPU: the model runs in the engine's core process. vLLM knows this by the name "uni" too, but on the
        # CPU it then takes a worker process, and both wait for each other by spinning.
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
        # The CPU engine's default of 128 tokens is longer than a sample video: nothing of it would be cached.
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
        quantisable=2.775,
    ),
    "qwen2.5-7b": QWEN25,
    "qwen2.5-32b": _qwen25(
        "Qwen/Qwen2.5-VL-32B-Instruct",
        "7cfb30d71a1f4f49a57592323337a4a4727301da",  # *
        parameters=33.453,
        quantisable=31.206,
    ),
    "qwen2.5-72b": _qwen25(
        "Qwen/Qwen2.5-VL-72B-Instruct",
        "89c86200743eec961a297729e7990e8f2ddbc4c5",  # *
        license="Qwen",
        parameters=73.411,
        quantisable=70.213,
    ),
    "skycaptioner": _qwen25(
        "Skywork/SkyCaptioner-V1",
        UNPINNED,  # in no public file that was found
        parameters=8.292,
        quantisable=6.525,
    ),
    "qwen3": QWEN3,
    "qwen3-4b": _qwen3(
        "Qwen/Qwen3-VL-4B-Instruct", "ebb281ec70b05090aa6165b016eac8ec08e71b17", parameters=4.438, quantisable=3.633
    ),
    "qwen3-8b": QWEN3,
    "qwen3-32b": _qwen3(
        "Qwen/Qwen3-VL-32B-Instruct",
        "0cfaf48183f594c314753d30a4c4974bc75f3ccb",  # *
        parameters=33.357,
        quantisable=31.206,
    ),
    "qwen3-30b-a3b": _qwen3(
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        "9c4b90e1e4ba969fd3b5378b57d966d725f1b86c",
        parameters=31.071,
        quantisable=29.91,
    ),
    "qwen3.5-0.8b": _qwen35(
        "Qwen/Qwen3.5-0.8B", "2fc06364715b967f1860aea9cf38778875588b17", parameters=0.853, quantisable=0.498
    ),
    "qwen3.5-2b": _qwen35(
        "Qwen/Qwen3.5-2B", "15852e8c16360a2fea060d615a32b45270f8a8fc", parameters=2.213, quantisable=1.373
    ),
    "qwen3.5-4b": _qwen35(
        "Qwen/Qwen3.5-4B", "851bf6e806efd8d0a36b00ddf55e13ccb7b8cd0a", parameters=4.539, quantisable=3.57
    ),
    "qwen3.5-9b": _qwen35(
        "Qwen/Qwen3.5-9B", "c202236235762e1c871ad0ccb60c8ee5ba337b9a", parameters=9.41, quantisable=6.919
    ),
    "qwen3.5-27b": _qwen35(
        "Qwen/Qwen3.5-27B",
        "fc05daec18b0a78c049392ed2e771dde82bdf654",  # *
        parameters=27.357,
        quantisable=24.353,
    ),
    "qwen3.5-35b-a3b": _qwen35(
        "Qwen/Qwen3.5-35B-A3B",
        "59d61f3ce65a6d9863b86d2e96597125219dc754",  # *
        parameters=35.107,
        quantisable=33.643,
    ),
    "qwen3.5-122b-a10b": _qwen35(
        "Qwen/Qwen3.5-122B-A10B",
        "b000b2eb18a7f4cdf3153c4215842da339e09d99",  # *
        parameters=122.563,
        quantisable=120.586,
    ),
    "qwen3.5-397b-a17b": _qwen35(
        "Qwen/Qwen3.5-397B-A17B",
        UNPINNED,  # public files name several
        parameters=396.802,
        quantisable=394.312,
    ),
    "qwen3.6-27b": _qwen35(
        "Qwen/Qwen3.6-27B", "6a9e13bd6fc8f0983b9b99948120bc37f49c13e9", parameters=27.357, quantisable=24.353
    ),
    "qwen3.6-35b-a3b": _qwen35(
        "Qwen/Qwen3.6-35B-A3B", "995ad96eacd98c81ed38be0c5b274b04031597b0", parameters=35.107, quantisable=33.643
    ),
    "glm-4.6v-flash": Variant(
        "zai-org/GLM-4.6V-Flash",
        "411bb4d77144a3f03accbf4b780f5acb8b7cde4e",
        fp8=False,
        license="MIT",
        parameters=10.293,
        quantisable=8.158,
    ),
    "internvl3.5-8b": Variant(
        "OpenGVLab/InternVL3_5-8B-HF",
        "741a7d03020411e666c6109218ab71e08151ef86",  # *
        fp8=False,
        license=APACHE,
        parameters=8.528,
        quantisable=6.946,
    ),
    "sample": SAMPLE,
}
"""By key. ``qwen`` is the key that NeMo Curator's users know."""


def find_variant(model: str, revision: str | None = None, like: str | None = None) -> Variant:
    """The variant that a user names.

    Args:
        model: a key of ``VARIANTS``, a Hub id (``org/name``), or a folder (``/…``, ``./…``, ``~/…`` or ``s3://…``).
        revision: commit of a model by Hub id or folder; what is made with it is told apart by this.
        like: key of the variant whose frame sizes and engine defaults a model by Hub id or folder shares: a fine-tune
            of a model that is trained on other sizes than the reference's is like its base.

    Raises:
        UnknownModel: if there is none, or the revision is missing or out of place.
    """
    if (known := VARIANTS.get(model)) is not None:
        return _of_key(model, known, revision, like)
    keys = ", ".join(sorted(VARIANTS))
    if not is_folder(model) and not HUB_ID.fullmatch(model):
        raise UnknownModel(
            f"there is no model {model!r}: choose one of {keys}, or name a Hub id (org/name) or a folder (/path/to/it "
            "or s3://bucket/path/to/it)"
        )
    if like is not None and like not in VARIANTS:
        raise UnknownModel(f"CAPTION_MODEL_LIKE is {like!r}: choose one of {keys}, or leave it out")
    if revision is None or not REVISION.fullmatch(revision):
        key = next((key for key, known in VARIANTS.items() if known.hub_id == model and known.revision), None)
        raise UnknownModel(
            f"model {model!r} needs CAPTION_MODEL_REVISION (it is {revision!r}): the commit on the Hub, or for a "
            "folder any word that distinguishes its contents from others"
            + (f"; or set CAPTION_MODEL={key}, whose revision is pinned" if key else "")
        )
    base = (
        replace(VARIANTS[like], bundled=False, license="", parameters=0.0, quantisable=0.0)
        if like
        else Variant("", "", dtype="auto", fp8=False)
    )
    base = replace(base, max_model_len=None)
    if is_folder(model):
        path, hub_id = as_folder(model)
        return replace(base, hub_id=hub_id, revision=revision, path=path)
    return replace(base, hub_id=model, revision=revision)


def _of_key(key: str, variant: Variant, revision: str | None, like: str | None) -> Variant:
    """A model by key, at its own revision or, where that is not pinned, at the user's."""
    if like is not None:
        raise UnknownModel(f"model {key!r} has its own defaults: leave CAPTION_MODEL_LIKE out")
    if variant.revision != UNPINNED:
        if revision is not None:
            raise UnknownModel(
                f"model {key!r} has its revision pinned: leave CAPTION_MODEL_REVISION out, or set CAPTION_MODEL="
                f"{variant.hub_id} for another one"
            )
        return variant
    if revision is None or not REVISION.fullmatch(revision):
        raise UnknownModel(
            f"model {key!r} ({variant.hub_id}) has no pinned revision: set CAPTION_MODEL_REVISION (it is {revision!r}) "
            f"to one of the commits at https://huggingface.co/{variant.hub_id}/commits/main"
        )
    return replace(variant, revision=revision)
