"""Tests of what libraries write to the console, in processes without the engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.fast

WARN = "import logging; logging.getLogger('vllm.early').warning('noise')"
"""A warning as vLLM logs it before it has configured its logger."""
MAIN = f"from caption_assets.captioning.library_logs import quiet_libraries; quiet_libraries(); {WARN}"
ENGINE = f"import caption_assets.captioning.vllm_plugin; {WARN}"
"""The main module of the engine's processes."""


@pytest.mark.parametrize("code", [MAIN, ENGINE], ids=["main", "engine"])
def test_early_warning_is_not_written(code: str) -> None:
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "CRITICAL"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (process.stderr, process.returncode) == ("", 0)
