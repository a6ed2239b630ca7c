"""The models that a settings key names: where their weights come from and how large their frames may be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from caption_assets.errors import CaptionAssetsError


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


@dataclass(frozen=True, slots=True)
class Variant:
    """One model that the project knows by a key."""

    hub_id: str
    """Organisation and name on the model hub; for the embedded sample model, a name of the same form."""
    revision: str
    """The commit that weights, tokenizer and processor all come from; of the sample model, the hash of its weights."""
    bundled: bool = False
    """Whether the weights lie in the package, so that no hub is asked."""
    path: str | None = None
    """Folder that the weights are taken from, in place of the hub: local, or a URL of object storage."""
    pixels: PixelLimits = field(default_factory=PixelLimits)
    dtype: str = "bfloat16"
    fp8: bool = True
    """Whether the language model is quantised to FP8 where there is a GPU."""
    max_model_len: int = 32768
    """Longest prompt and answer together, in tokens."""
    gpus: int = 1
    """GPUs that one replica needs at least; 0 for a model that runs on the CPU."""
    cpus: int = 6
    """Cores that captioning asks for, for each GPU, or in all where there is none: most of them decode. A node with one
    GPU often has 8, some of a core of which is its own."""
    host_gb: float = 12.0
    """Main memory of the engine's processes for each GPU, or in all where there is none, in GiB: CUDA's, torch's, and
    weights on their way. An estimate."""
    presized: bool = True
    """Whether its processor takes frames as they are sized by ``pixels``; one that is not known resizes them itself."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM's ``AsyncEngineArgs`` that this model wants otherwise than the project's defaults."""

    @property
    def folder(self) -> str:
        """Where the weights lie below ``weights/`` in the root: ``<org>--<name>/<revision>``."""
        return f"{self.hub_id.replace('/', '--')}/{self.revision}"


class UnknownModel(CaptionAssetsError):
    """A model key that no variant has."""


QWEN25 = Variant(hub_id="Qwen/Qwen2.5-VL-7B-Instruct", revision="cc594898137f460bfe9f0759e9844b3ce807cfb5")
QWEN3 = Variant(
    hub_id="Qwen/Qwen3-VL-8B-Instruct",
    revision="0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
    # Patches of 16 pixels, merged two by two; the same numbers of tokens as Qwen2.5-VL.
    pixels=PixelLimits(factor=32, min_pixels=128 * 32**2, max_pixels=768 * 32**2, total_pixels=24576 * 32**2),
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
VARIANTS = {"qwen": QWEN25, "qwen2.5": QWEN25, "qwen3": QWEN3, "sample": SAMPLE}
"""By key. ``qwen`` is the key that NeMo Curator's users know."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_variant(model: str, revision: str | None = None, like: str | None = None) -> Variant:
    """The variant that a user names.

    Args:
        model: a key of ``VARIANTS``, a Hub id (``org/name``), or a folder (``/…``, ``./…``, ``~/…`` or ``s3://…``).
        revision: commit of a model by Hub id or folder; what is made with it is told apart by this.
        like: key of the variant whose frame sizes and engine defaults a model by Hub id or folder shares: a fine-tune
            of Qwen2.5-VL is like ``qwen2.5``. Without it the model's own processor sizes the frames.

    Raises:
        UnknownModel: if there is none, or the revision is missing or out of place.
    """
    if model in VARIANTS:
        if revision is not None or like is not None:
            raise UnknownModel(f"model {model!r} has its revision pinned: leave CAPTION_MODEL_REVISION and _LIKE out")
        return VARIANTS[model]
    keys = ", ".join(sorted(VARIANTS))
    is_folder = model.startswith(("/", "./", "../", "~", "s3://"))
    if not is_folder and not _HUB_ID.fullmatch(model):
        raise UnknownModel(
            f"there is no model {model!r}: choose one of {keys}, or name a Hub id (org/name) or a folder (/path/to/it "
            "or s3://bucket/path/to/it)"
        )
    if like is not None and like not in VARIANTS:
        raise UnknownModel(f"CAPTION_MODEL_LIKE is {like!r}: choose one of {keys}, or leave it out")
    if revision is None or not re.fullmatch(r"[\w.-]+", revision):
        raise UnknownModel(
            f"model {model!r} needs CAPTION_MODEL_REVISION (it is {revision!r}): the commit on the Hub, or for a "
            "folder any word that tells its contents from others"
        )
    base = replace(VARIANTS[like], bundled=False) if like else Variant("", "", fp8=False, presized=False)
    if is_folder:
        path = model.rstrip("/") if model.startswith("s3://") else str(Path(model).expanduser())
        return replace(base, hub_id=f"local/{PurePosixPath(path).name}", revision=revision, path=path)
    return replace(base, hub_id=model, revision=revision)
