"""The words of the sample model as an oracle for the whole path from file to caption, on the session's engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Request
from caption_assets.captioning.two_stage import Captioned, Task, caption
from caption_assets.clips.decode import Frames, decode
from caption_assets.clips.manifest import manifest_rows
from caption_assets.clips.shard import find_shard, list_clips
from caption_assets.clips.window import Windowing
from caption_assets.sample.clips import encode_frames
from caption_assets.sample.world import COLOURS, Scene, random_scene, render, stage1_caption
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, Status
from tests.conftest import Ask, Truth

pytestmark = pytest.mark.engine

RECIPE = Recipe()
SHARDS = ["sample-folder", "sample-tar"]


def tasks_of(data: Path, shard: str) -> list[Task]:
    """A task for each window of a sample shard."""
    source = Root.open(str(data / "shards"))
    found = find_shard(source, shard)
    clips = {clip.key: clip for clip in list_clips(source, found)}
    return [
        Task(row, lambda row=row: clips[row.clip_key].read(source.fs))  # type: ignore[misc]
        for row in manifest_rows(source, found, Windowing())
    ]


@pytest.fixture(scope="module")
def captioned(engine: CaptionEngine, ask: Ask[Any], sample_data: Path) -> dict[str, list[Captioned]]:
    """Both sample shards, captioned in both stages."""
    return {shard: ask(caption(engine, RECIPE, tasks_of(sample_data, shard), with_stage2=True)) for shard in SHARDS}


@pytest.mark.parametrize("shard", SHARDS)
def test_every_readable_clip_is_captioned_right_in_both_stages(
    captioned: dict[str, list[Captioned]], truth: Truth, shard: str
) -> None:
    said = [
        (done.stage1.clip_key, done.stage1.window_index, done.stage1.caption, done.stage2.caption)
        for done in captioned[shard]
        if done.stage2 is not None and done.stage1.window_index is not None
    ]
    expected = [
        (clip, window, *captions)
        for clip, windows in sorted(truth[shard].items())
        for window, captions in enumerate(windows)
    ]
    assert said == expected


@pytest.mark.parametrize("shard", SHARDS)
def test_a_broken_clip_fails_in_both_stages_and_stops_no_other(
    captioned: dict[str, list[Captioned]], shard: str
) -> None:
    [broken] = [done for done in captioned[shard] if done.stage1.status is Status.FAILED]
    assert broken.stage1.error
    assert broken.stage1.caption is None
    assert broken.stage2 is not None
    assert (broken.stage2.error_kind, broken.stage2.caption) == ("stage1_failed", None)


def test_rows_tell_how_they_were_made(captioned: dict[str, list[Captioned]]) -> None:
    done = captioned["sample-folder"][0]
    first, second = done.stage1, done.stage2
    assert second is not None
    assert first.model == RECIPE.variant.hub_id
    assert first.finish_reason == second.finish_reason == "stop"
    assert first.frame_indices == second.frame_indices
    assert len(first.frame_indices or ()) >= 4
    assert first.prompt_hash != second.prompt_hash
    assert second.stage1_fingerprint == first.fingerprint
    assert first.attempts == second.attempts == 1
    assert first.sampling is not None
    assert first.sampling["max_output_tokens"] == 512
    assert min(first.prompt_tokens or 0, first.output_tokens or 0) > 0


def test_stage_2_takes_the_video_from_the_prefix_cache(captioned: dict[str, list[Captioned]]) -> None:
    rows = [done.stage2 for shard in SHARDS for done in captioned[shard] if done.stage1.status is Status.OK]
    cached = sum(row.cached_tokens or 0 for row in rows if row)
    assert cached > 0.25 * sum(row.prompt_tokens or 0 for row in rows if row)


def test_stage_2_alone_gives_what_the_joint_run_gave(
    engine: CaptionEngine, ask: Ask[Any], sample_data: Path, captioned: dict[str, list[Captioned]]
) -> None:
    joint = captioned["sample-folder"]
    tasks = [
        replace(task, stage1=done.stage1)
        for task, done in zip(tasks_of(sample_data, "sample-folder"), joint, strict=True)
    ]
    alone = ask(caption(engine, RECIPE, tasks, with_stage2=True))
    assert [text(done.stage2) for done in alone] == [text(done.stage2) for done in joint]
    assert [done.stage1 for done in alone] == [done.stage1 for done in joint]


def test_stage_2_copies_what_its_own_stage_1_says_even_where_that_is_false(
    engine: CaptionEngine, ask: Ask[Any], sample_data: Path, captioned: dict[str, list[Captioned]], truth: Truth
) -> None:
    """Each clip is told another story; told another clip's, or none, it would give itself away."""
    joint = captioned["sample-tar"]
    tasks = []
    told = []
    for number, (task, done) in enumerate(zip(tasks_of(sample_data, "sample-tar"), joint, strict=True)):
        story = stage1_caption(list(COLOURS)[number % 7], ("circle", "square", "triangle")[number % 3], "moves up")
        told.append(story)
        tasks.append(replace(task, stage1=replace(done.stage1, caption=story)) if done.stage1.caption else task)
    lied_to = ask(caption(engine, RECIPE, tasks, with_stage2=True))
    for done, story in zip(lied_to, told, strict=True):
        if done.stage1.status is Status.FAILED:
            continue
        assert done.stage2 is not None
        right = truth["sample-tar"][done.stage1.clip_key][done.stage1.window_index or 0][1]
        size, background = right.split()[1], right.split(" on a ")[1]
        assert done.stage2.caption == f"A {size} {story[2:-1]} on a {background}"


def text(row: CaptionRow | None) -> str | None:
    return row.caption if row else None


# --- the oracle itself: what is done wrong on purpose shows in the words


@pytest.fixture(scope="module")
def red_going_left() -> Scene:
    return next(
        scene
        for seed in range(9999)
        if (scene := random_scene(np.random.default_rng(seed), 320, 240)).stage1 == "A red circle moves left."
    )


@pytest.fixture(scope="module")
def frames(red_going_left: Scene) -> Frames:
    return decode(film(red_going_left), 0, 75, 6, (84, 112))


def film(*scenes: Scene, frames_each: int = 75) -> bytes:
    times = [index / (frames_each - 1) for index in range(frames_each)]
    rng = np.random.default_rng(0)
    pictures = chain.from_iterable(render(scene, 320, 240, times, rng) for scene in scenes)
    return encode_frames(pictures, 320, 240, 25, "h264", 20)


@pytest.fixture
def describe(engine: CaptionEngine, ask: Ask[Any]) -> Callable[[Frames], str]:
    """Asks for a stage-1 caption of some frames, each call under an id of its own."""

    def stage1(frames: Frames) -> str:
        request = Request(uuid4().hex, frames, RECIPE.prompt.stage1)
        return str(ask(engine.complete(request, RECIPE.generation)).text)

    return stage1


def test_frames_as_they_are_give_the_right_words(describe: Callable[[Frames], str], frames: Frames) -> None:
    assert describe(frames) == "A red circle moves left."


def test_swapped_channels_show_in_the_words(describe: Callable[[Frames], str], frames: Frames) -> None:
    assert "red" not in describe(replace(frames, pixels=np.ascontiguousarray(frames.pixels[..., ::-1])))


def test_reversed_frames_show_in_the_words(describe: Callable[[Frames], str], frames: Frames) -> None:
    assert describe(replace(frames, pixels=np.ascontiguousarray(frames.pixels[::-1]))) == "A red circle moves right."


def test_the_wrong_window_shows_in_the_words(describe: Callable[[Frames], str], red_going_left: Scene) -> None:
    other = next(
        scene
        for seed in range(9999)
        if (scene := random_scene(np.random.default_rng(seed), 320, 240)).stage1 == "A blue square moves down."
    )
    data = film(red_going_left, other)
    assert describe(decode(data, 0, 75, 6, (84, 112))) == "A red circle moves left."
    assert describe(decode(data, 75, 150, 6, (84, 112))) == "A blue square moves down."
