"""A vLLM plug-in for tests: a magenta video makes the engine's worker crash or hang.

The worker fails as with a bug in a kernel or a lack of memory: in its own process, because of one window.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

FAULT = "_CAPTION_ASSETS_TEST_POISON"
"""Environment variable: ``crash`` or ``hang``."""
MAGENTA = (255, 0, 255)
NAME = "caption_assets_test_poison"


def write_distribution(folder: Path) -> None:
    """Register the plug-in for processes that have ``folder`` on their path."""
    info = folder / f"{NAME}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{NAME} = tests.poison_plugin:install\n")


def install() -> None:
    """Wrap the model's video input. vLLM calls this in each of its processes."""
    fault = os.environ.get(FAULT)
    if fault is None:
        return
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    process = Model._process_video_input

    def process_or_fail(self: Any, video: Any) -> Any:
        if is_magenta(video["pixel_values_videos"]):
            if fault == "crash":
                os._exit(1)
            time.sleep(3600)
        return process(self, video)

    Model._process_video_input = process_or_fail


def is_magenta(patches: Any) -> bool:
    """Whether a video of a batch is magenta.

    Patches have the shape (patches, 3 * 2 * 14 * 14), channels first, from 0 to 255: vLLM normalizes them later.
    """
    red, green, blue = patches.float().unflatten(1, (3, -1)).mean(2).unbind(1)
    return bool(((red > 230) & (green < 40) & (blue > 230)).any())
