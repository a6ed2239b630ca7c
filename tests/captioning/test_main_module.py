"""Library use in a script without a main guard: the engine's processes do not run the script once more."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from caption_assets.captioning.build import main_module_hidden

SPAWNED = """
import os
from multiprocessing import get_context
from caption_assets.captioning.build import main_module_hidden

print("main")
with main_module_hidden():
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
    """The lines that a script prints, run in one of the ways in which Python takes one."""
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
def test_a_spawned_process_does_not_run_the_script_once_more(way: str, tmp_path: Path) -> None:
    assert run(SPAWNED, way, tmp_path) == ["main", "0 True"]


@pytest.mark.fast
def test_the_main_module_is_found_again_afterwards() -> None:
    before = dict(vars(sys.modules["__main__"]))
    with main_module_hidden():
        assert get_context("spawn").Process(target=os.getpid).exitcode is None
    assert vars(sys.modules["__main__"]) == before


@pytest.mark.engine
def test_videos_are_captioned_by_a_script_from_stdin(tmp_path: Path) -> None:
    from caption_assets.qwen_vl import QwenVL

    QwenVL.download_weights_on_node(str(tmp_path / "models"), "sample")
    assert "1 captions" in run(CAPTIONED.format(folder=str(tmp_path / "models")), "stdin", tmp_path)
