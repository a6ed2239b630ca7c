"""Tests of the import hooks in processes without the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

CUDA_BUILD = """
import torch

torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: None)
names = ["nms"]
"""
"""A torchvision that fails as a CUDA build does: it registers a shape function for an operator without schema."""
IMPORT = "import torchvision; print(torchvision.names)"
SPAWNED = f"""
from multiprocessing import get_context
from caption_assets.captioning.build import main_module_replaced

with main_module_replaced():
    process = get_context("spawn").Process(target=exec, args=({IMPORT!r},))
    process.start()
process.join()
"""

INSPECTION = """
import caption_assets.captioning
from vllm.model_executor.models import registry

registry._SUBPROCESS_COMMAND = ["/nonexistent"]
print(registry.ModelRegistry.models["Qwen2_5_VLForConditionalGeneration"].inspect_model_cls().architecture)
"""


def run(code: str, torchvision: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an environment with this torchvision."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(torchvision)
    paths = os.pathsep.join([str(folder), *sys.path])
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "code",
    ["import caption_assets.captioning, torchvision; print(torchvision.names)", SPAWNED],
    ids=["main", "spawned"],
)
def test_torchvision_for_cuda_is_imported(code: str, tmp_path: Path) -> None:
    process = run(code, CUDA_BUILD, tmp_path)
    assert (process.stdout, process.returncode) == ("['nms']\n", 0), process.stderr


def test_another_error_of_torchvision_is_raised(tmp_path: Path) -> None:
    process = run("import caption_assets.captioning, torchvision", "raise RuntimeError('out of date')", tmp_path)
    assert process.stderr.rstrip().endswith("RuntimeError: out of date")


@pytest.mark.parametrize("name", ["torchaudio", "torchcodec"])
def test_optional_library_for_cuda_is_hidden(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}-2.11.1.dist-info").mkdir()
    (tmp_path / f"{name}-2.11.1.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 2.11.1\n")
    (tmp_path / f"{name}.py").write_text("raise OSError('libc10_cuda.so')")
    code = f"import caption_assets.captioning, importlib.util; print(importlib.util.find_spec({name!r}))"
    assert run(code, "", tmp_path).stdout == "None\n"


def test_model_is_inspected_without_another_process(tmp_path: Path) -> None:
    environment = {**os.environ, "VLLM_CACHE_ROOT": str(tmp_path)}
    command = [sys.executable, "-c", INSPECTION]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.stdout.splitlines()[-1:] == ["Qwen2_5_VLForConditionalGeneration"], process.stderr
