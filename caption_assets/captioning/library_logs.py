"""The console output of vLLM, torch and their processes: none by default.

A failure's cause is found without it (see ``engine_failure``). A start on a CPU writes some 40 lines of warnings that
users cannot act on. Any value of ``VLLM_LOGGING_LEVEL`` in the environment is respected, and leaves all of them on.
"""

from __future__ import annotations

import logging
import os
import warnings

LEVEL = "VLLM_LOGGING_LEVEL"
_QUIET = "CRITICAL"
"""Level of vLLM's console. At ERROR it would write stack traces."""
_ENVIRONMENT = {
    LEVEL: _QUIET,
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-torch._library.triton",  # it warns that Triton is missing, on each CPU
}


def quiet_libraries() -> None:
    """Silence the libraries in this process and those that it starts. Call it before they are imported."""
    if os.environ.get(LEVEL, _QUIET) != _QUIET:
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logger = logging.getLogger("vllm")
    if not logger.handlers:  # until vLLM adds one, Python's handler of last resort writes warnings
        logger.addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|transformers|vllm)\b")


def log_libraries() -> None:
    """Let the libraries log, unless the environment already sets their level."""
    os.environ.setdefault(LEVEL, "INFO")


def is_quiet() -> bool:
    """Whether the libraries are silenced."""
    return os.environ.get(LEVEL) == _QUIET
