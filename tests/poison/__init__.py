"""A vLLM plug-in for tests: the engine's worker crashes, or hangs, when it is shown a magenta video.

So an engine can be killed by one window as a kernel's bug or a lack of memory would kill it: in its own process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

DEED = "_CAPTION_ASSETS_TEST_POISON"
"""Variable: ``crash`` or ``hang``."""
MAGENTA = (255, 0, 255)
NAME = "caption_assets_test_poison"


def write_distribution(folder: Path) -> None:
    """Make the plug-in known to processes that have ``folder`` on their path."""
    info = folder / f"{NAME}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{NAME} = tests.poison:install\n")


def install() -> None:
    """Called by vLLM in each of its processes."""
    deed = os.environ.get(DEED)
    if deed is None:
        return
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    process = Model._process_video_input

    def poisoned(self: Any, video: Any) -> Any:
        if is_magenta(video["pixel_values_videos"]):
            if deed == "crash":
                os._exit(1)
            time.sleep(3600)
        return process(self, video)

    Model._process_video_input = poisoned


def is_magenta(patches: Any) -> bool:
    """Whether one of the videos of a batch is magenta.

    Its patches are (patches, 3 * 2 * 14 * 14), the channels first, from 0 to 255: vLLM normalizes them later.
    """
    red, green, blue = patches.float().unflatten(1, (3, -1)).mean(2).unbind(1)
    return bool(((red > 230) & (green < 40) & (blue > 230)).any())
