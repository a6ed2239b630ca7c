"""Standard output for results, and standard error for progress."""

import os
import sys


def keep_output_for_result() -> None:
    """Let vLLM log to the standard error: the standard output is for the result."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def report(message: str) -> None:
    """Print a message about the progress."""
    print(message, file=sys.stderr, flush=True)
