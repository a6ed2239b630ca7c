"""Tests of videos as a model's own processor prepares them, with vLLM's front end and no engine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Request
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.seen_video import SeenVideo
from caption_assets.models.variants import find_variant
from caption_assets.video.decode import Frames
from tests.captioning.families import FAMILIES
from tests.captioning.front_end import build_front_end
from tests.conftest import RunAsync

pytestmark = pytest.mark.engine

SENT = 20
LONG = Recipe(variant=replace(Recipe().variant, max_model_len=8192))


def changed(model: Path, folder: Path, **processor: Any) -> Path:
    """A copy of a model with other settings of its video processor."""
    shutil.copytree(model, folder)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["video_processor"].update(processor)
    path.write_text(json.dumps(settings))
    return folder


def frames(height: int, width: int, count: int = SENT) -> Frames:
    pixels = np.random.default_rng(count).integers(0, 255, (count, height, width, 3), dtype=np.uint8)
    return Frames(pixels, tuple(range(0, 3 * count, 3)), 2.0)


def seen(run_async: RunAsync[Any], engine: CaptionEngine, sent: Frames) -> SeenVideo:
    """The video of a request as the engine reads it from its processor."""
    request = Request(uuid4().hex, sent, engine.render("What is it?"), SamplingParams(), stage=1)
    run_async(engine._prepare(request, with_pixels=True))
    return engine._seen.of(request.video_id)


EVERY = tuple(range(SENT))


def test_video_is_read_with_a_processor_cache_in_shared_memory(run_async: RunAsync[Any], model_folder: Path) -> None:
    engine = run_async(build_front_end(model_folder, Recipe(), mm_processor_cache_type="shm"))
    for _ in range(2):
        assert seen(run_async, engine, frames(84, 112)) == SeenVideo(EVERY, 84, 112)


def test_frames_of_the_final_size_are_not_resized(run_async: RunAsync[Any], model_folder: Path) -> None:
    engine = run_async(build_front_end(model_folder, Recipe()))
    assert seen(run_async, engine, frames(84, 112)) == SeenVideo(EVERY, 84, 112)


def test_frames_resized_by_the_processor_have_its_size(run_async: RunAsync[Any], model_folder: Path) -> None:
    engine = run_async(build_front_end(model_folder, LONG, processor_resizes=True))
    found = seen(run_async, engine, frames(60, 90))
    assert found.positions == EVERY
    assert found.height
    assert found.width
    assert found.height % 28 == found.width % 28 == 0
    assert (found.height, found.width) != (60, 90)
    prepared = run_async(engine._process(frames(60, 90)))
    assert prepared["video_grid_thw"].tolist() == [SENT // 2, found.height // 14, found.width // 14]


@pytest.mark.parametrize(
    ("processor", "kept"),
    [
        ({"do_sample_frames": True, "num_frames": 8}, (0, 2, 5, 7, 10, 12, 15, 17)),
        ({"do_sample_frames": True, "fps": 1.0}, tuple(range(0, SENT, 2))),
        ({"temporal_patch_size": 4}, EVERY),
    ],
)
def test_frames_dropped_by_the_processor_are_not_seen(
    run_async: RunAsync[Any], model_folder: Path, tmp_path: Path, processor: dict[str, Any], kept: tuple[int, ...]
) -> None:
    engine = run_async(
        build_front_end(changed(model_folder, tmp_path / "model", **processor), LONG, processor_resizes=True)
    )
    for _ in range(2):  # detected once for all videos of a shape and rate
        assert seen(run_async, engine, frames(56, 84)).positions == kept


def test_frames_of_a_long_video_are_distinguished(run_async: RunAsync[Any], model_folder: Path, tmp_path: Path) -> None:
    folder = changed(model_folder, tmp_path / "model", do_sample_frames=True, num_frames=60)
    engine = run_async(build_front_end(folder, LONG, processor_resizes=True))
    kept = seen(run_async, engine, frames(28, 28, count=600)).positions
    assert kept is not None
    assert kept == tuple(range(0, 600, 10))


DROPPING = {"do_sample_frames": True, "num_frames": 8}
AS_SENT = (EVERY, (224, 448))


@pytest.mark.parametrize(
    ("family", "processor", "kept", "size"),
    [
        ("qwen2-vl", {}, *AS_SENT),
        ("qwen3-vl", {}, *AS_SENT),
        ("qwen3-vl", DROPPING, *AS_SENT),  # vLLM passes frames that are sampled already
        ("qwen3.5", {}, *AS_SENT),
        ("llava-onevision", {}, EVERY, (112, 112)),
        ("llava-onevision", DROPPING, (0, 2, 5, 7, 10, 12, 15, 17), (112, 112)),
        ("internvl", {}, EVERY, (56, 56)),
        ("internvl", DROPPING, (1, 3, 6, 8, 11, 13, 16, 18), (56, 56)),
        ("glm-4.6v", DROPPING, EVERY, None),
    ],
)
def test_processor_of_each_family_is_read(
    run_async: RunAsync[Any],
    tmp_path: Path,
    family: str,
    processor: dict[str, Any],
    kept: tuple[int, ...],
    size: tuple[int, int] | None,
) -> None:
    FAMILIES[family](tmp_path / "made", 8192)
    folder = changed(tmp_path / "made", tmp_path / "model", **processor)
    engine = run_async(build_front_end(folder, Recipe(find_variant(str(folder), "1"))))
    sent = frames(*(100, 200) if size is None else (224, 448))
    found = seen(run_async, engine, sent)
    assert found.positions == kept
    if size is None:  # the processor chooses it
        _, high, wide = run_async(engine._process(sent))["video_grid_thw"].flatten().tolist()[-3:]
        size = high * 14, wide * 14
        assert size != (100, 200)
    assert (found.height, found.width) == size
