"""The models that a settings key names: where their weights come from and how large their frames may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    pixels: PixelLimits = field(default_factory=PixelLimits)
    dtype: str = "bfloat16"
    fp8: bool = True
    """Whether the language model is quantised to FP8 where there is a GPU."""
    max_model_len: int = 32768
    """Longest prompt and answer together, in tokens."""
    gpus: int = 1
    """GPUs that the captioning pod asks for."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM's ``AsyncEngineArgs`` that this model wants otherwise than the project's defaults."""

    @property
    def folder(self) -> str:
        """Where the weights lie below ``weights/`` in the root: ``<org>--<name>/<revision>``."""
        return f"{self.hub_id.replace('/', '--')}/{self.revision}"


class UnknownModel(CaptionAssetsError):
    """A model key that no variant has."""


QWEN25 = Variant(hub_id="Qwen/Qwen2.5-VL-7B-Instruct", revision="cc594898137f460bfe9f0759e9844b3ce807cfb5")
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
    engine={
        "enforce_eager": True,
        "max_num_batched_tokens": 4096,
        "max_num_seqs": 32,
        "kv_cache_memory_bytes": 256 << 20,
        "mm_processor_cache_gb": 0.5,
        # The CPU engine's default of 128 tokens is longer than a sample video: nothing of it would be cached.
        "block_size": 32,
    },
)
VARIANTS = {"qwen": QWEN25, "qwen2.5": QWEN25, "sample": SAMPLE}
"""By key. ``qwen`` is the key that NeMo Curator's users know."""


def variant(key: str) -> Variant:
    """The variant named ``key``.

    Raises:
        UnknownModel: if there is none.
    """
    try:
        return VARIANTS[key]
    except KeyError:
        raise UnknownModel(f"there is no model {key!r}: choose one of {', '.join(sorted(VARIANTS))}") from None
