"""Tests of scripts without a main guard: the engine's processes do not run the script again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from caption_assets.captioning.build import ENGINE_MAIN, main_module_replaced

SPAWNED = """
import os
from multiprocessing import get_context
from caption_assets.captioning.build import main_module_replaced

print("main")
with main_module_replaced():
    process = get_context("spawn").Process(target=os.getpid)
    process.start()
process.join()
print(process.exitcode, __spec__ is not None or "__file__" in globals())
"""
CAPTIONED = """
import numpy as np
from caption_assets.qwen_vl import QwenVL

model = QwenVL({folder!r}, "sample", 16, fp8=False)
model.setup()
video = np.zeros((4, 56, 56, 3), np.uint8)
prompt = "<|im_start|>user\\n<|vision_start|><|video_pad|><|vision_end|>Describe.<|im_end|>\\n<|im_start|>assistant\\n"
print(len(model.generate([{{"prompt": prompt, "multi_modal_data": {{"video": (video, {{"fps": 2.0}})}}}}])), "captions")
model.close()
"""


def run(script: str, way: str, folder: Path) -> list[str]:
    """The lines that a script prints, started as a file, as a module, from stdin or as a command."""
    (folder / "script.py").write_text(script)
    arguments = {"script": ["script.py"], "module": ["-m", "script"], "stdin": ["-"], "command": ["-c", script]}[way]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=script if way == "stdin" else "",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.fast
@pytest.mark.parametrize("way", ["script", "module", "stdin"])
def test_spawned_process_does_not_run_the_script(way: str, tmp_path: Path) -> None:
    assert run(SPAWNED, way, tmp_path) == ["main", "0 True"]


@pytest.mark.fast
def test_main_module_is_restored_after_the_block() -> None:
    main = vars(sys.modules["__main__"])
    before = dict(main)
    with main_module_replaced():
        assert (main["__spec__"].name, main.get("__file__")) == (ENGINE_MAIN, None)
    assert main == before


@pytest.mark.engine
def test_script_from_stdin_captions_videos(tmp_path: Path) -> None:
    from caption_assets.qwen_vl import QwenVL

    QwenVL.download_weights_on_node(str(tmp_path / "models"), "sample")
    assert "1 captions" in run(CAPTIONED.format(folder=str(tmp_path / "models")), "stdin", tmp_path)
