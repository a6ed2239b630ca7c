"""Tests of the complete path from file to caption, on the session's engine: sample clips have known captions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.prefix_cache import NO_HITS, CacheHits
from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.request import Completion, Request, RequestFailed
from caption_assets.captioning.sampling import DETERMINISTIC, SamplingParams
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.models.variants import PixelLimits
from caption_assets.sample.clips import encode_frames
from caption_assets.sample.world import COLORS, Scene, random_scene, render, stage1_caption
from caption_assets.sources.manifest import clip_pieces, probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, Status
from caption_assets.video.decode import Frames
from caption_assets.video.window import Windowing
from tests.captioning.window_jobs import video_jobs
from tests.conftest import SANDBOX, RunAsync, Truth, caption_all
from tests.stages import STAGE1, STAGE2, STAGES, two_stages, with_prompts
from tests.videos import decode

pytestmark = pytest.mark.engine

RECIPE = two_stages()
SHARDS = ["sample-folder", "sample-tar"]


def shard_jobs(data: Path, shard: str) -> list[WindowJob]:
    """A job for each window of a sample shard."""
    source = Root.open(str(data / "shards"))
    clips = probe_clips(SANDBOX, source, find_shard(source, shard), Windowing())
    return [WindowJob(row, partial(clip_pieces, source, row), STAGES) for clip in clips for row in clip.rows]


@pytest.fixture(scope="module")
def captioned(supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path) -> dict[str, list[WindowJob]]:
    """The finished jobs of both sample shards."""
    return {shard: run_async(caption_all(supervisor, RECIPE, shard_jobs(sample_data, shard))) for shard in SHARDS}


@pytest.mark.parametrize("shard", SHARDS)
def test_every_readable_clip_has_correct_captions_of_both_stages(
    captioned: dict[str, list[WindowJob]], truth: Truth, shard: str
) -> None:
    captions = [
        (done.row(STAGE1).clip_key, done.row(STAGE1).window_index, done.row(STAGE1).caption, done.row(STAGE2).caption)
        for done in captioned[shard]
        if done.row(STAGE1).window_index is not None
    ]
    expected = [
        (clip, window, answers[STAGE1.name], answers[STAGE2.name])
        for clip, windows in sorted(truth[shard].items())
        for window, answers in enumerate(windows)
    ]
    assert captions == expected


@pytest.mark.parametrize("shard", SHARDS)
def test_unreadable_clip_fails_in_both_stages_and_no_other_fails(
    captioned: dict[str, list[WindowJob]], shard: str
) -> None:
    [broken] = [done for done in captioned[shard] if done.row(STAGE1).status is Status.FAILED]
    assert broken.row(STAGE1).error
    assert broken.row(STAGE1).caption is None
    assert (broken.row(STAGE2).error_kind, broken.row(STAGE2).caption) == ("upstream_failed", None)


def test_rows_store_their_provenance(captioned: dict[str, list[WindowJob]]) -> None:
    done = captioned["sample-folder"][0]
    first, second = done.row(STAGE1), done.row(STAGE2)
    assert first.model == RECIPE.variant.hub_id
    assert first.finish_reason == second.finish_reason == "stop"
    assert first.frame_indices == second.frame_indices
    assert len(first.frame_indices or ()) >= 4
    assert first.prompt_hash != second.prompt_hash
    assert second.upstream_fingerprints == {STAGE1.name: first.fingerprint}
    assert first.attempts == second.attempts == 1
    assert first.sampling is not None
    assert first.sampling["max_output_tokens"] == 512
    assert min(first.prompt_tokens or 0, first.output_tokens or 0) > 0


BLOCK = 32
"""Block size of the sample engine's prefix cache, in tokens."""


def test_stage_2_takes_whole_blocks_of_the_video_from_the_prefix_cache(
    engine: CaptionEngine, captioned: dict[str, list[WindowJob]]
) -> None:
    cached = cacheable = 0
    hits = sum((hits for done in chain.from_iterable(captioned.values()) for hits in done.hits.values()), NO_HITS)
    for done in chain.from_iterable(captioned.values()):
        second = done.row(STAGE2)
        if second.prompt_tokens is None:
            continue
        text = engine.text_tokens(engine.render(STAGE2.instruction({STAGE1.name: done.row(STAGE1).caption or ""})))
        head = engine.text_tokens(engine.render("").split("<|vision_end|>")[0])
        cacheable += (head + second.prompt_tokens - text) // BLOCK * BLOCK
        cached += second.cached_tokens or 0
    assert cached >= 0.98 * cacheable > 0
    assert hits == CacheHits(cached, cacheable)


def test_video_is_encoded_once_for_both_stages(
    engine: CaptionEngine, supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    """The videos are large: between a video's stages, more tokens of other videos are encoded than one step has."""
    pixels = PixelLimits(min_pixels=64 * 28**2, max_pixels=72 * 28**2, total_pixels=800 * 28**2)
    recipe = two_stages(variant=replace(RECIPE.variant, pixels=pixels))
    jobs = [*shard_jobs(sample_data, "sample-folder"), *shard_jobs(sample_data, "sample-tar")] * 2
    fresh = [replace(job, window=replace(job.window, window_id=uuid4().hex)) for job in jobs]
    run_async(encodings(engine))

    done = run_async(caption_all(supervisor, recipe, fresh))

    captioned = [each for each in done if each.row(STAGE2).status is Status.OK]
    assert run_async(encodings(engine)) == len(captioned) > 40


async def encodings(engine: CaptionEngine) -> int:
    """Number of videos encoded since the last call."""
    [requests] = await engine._llm.collective_rpc("get_encoder_timing_stats")
    return sum(request["num_encoder_calls"] for request in requests.values())


def test_stage_2_alone_equals_the_joint_run(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path, captioned: dict[str, list[WindowJob]]
) -> None:
    joint = captioned["sample-folder"]
    jobs = [
        replace(job, rows={STAGE1.name: done.rows[STAGE1.name]})
        for job, done in zip(shard_jobs(sample_data, "sample-folder"), joint, strict=True)
    ]
    alone = run_async(caption_all(supervisor, RECIPE, jobs))
    assert [text(done.row(STAGE2)) for done in alone] == [text(done.row(STAGE2)) for done in joint]
    assert [done.row(STAGE1) for done in alone] == [done.row(STAGE1) for done in joint]


def test_stage_2_repeats_the_stage_1_caption_of_its_own_window(
    supervisor: EngineSupervisor,
    run_async: RunAsync[Any],
    sample_data: Path,
    captioned: dict[str, list[WindowJob]],
    truth: Truth,
) -> None:
    """Each window has a different false stage-1 caption, so that a mix-up of windows is detected."""
    joint = captioned["sample-tar"]
    jobs = []
    false_captions = []
    for number, (job, done) in enumerate(zip(shard_jobs(sample_data, "sample-tar"), joint, strict=True)):
        false = stage1_caption(list(COLORS)[number % 7], ("circle", "square", "triangle")[number % 3], "moves up")
        false_captions.append(false)
        first = done.rows[STAGE1.name]
        rows = {STAGE1.name: replace(first, row=replace(first.row, caption=false))} if first.row.caption else {}
        jobs.append(replace(job, rows=rows))
    finished = run_async(caption_all(supervisor, RECIPE, jobs))
    for done, false in zip(finished, false_captions, strict=True):
        if done.row(STAGE1).status is Status.FAILED:
            continue
        right = truth["sample-tar"][done.row(STAGE1).clip_key][done.row(STAGE1).window_index or 0][STAGE2.name]
        size, background = right.split()[1], right.split(" on a ")[1]
        assert done.row(STAGE2).caption == f"A {size} {false[2:-1]} on a {background}"


def text(row: CaptionRow | None) -> str | None:
    return row.caption if row else None


# --- one window at a time


def first_job(data: Path) -> WindowJob:
    return shard_jobs(data, "sample-folder")[0]


class RefusingSupervisor(EngineSupervisor):
    """A supervisor of the session's engine, which refuses videos of too many or too large frames.

    It makes those requests longer than the context, so that vLLM refuses them.
    """

    def __init__(
        self, supervisor: EngineSupervisor, *, frames: int = 10**9, pixels: int = 10**9, first_requests: int = 0
    ) -> None:
        self._supervisor = supervisor
        self._frames, self._pixels, self._first_requests = frames, pixels, first_requests
        self.requests: list[Request] = []
        self.crashes = 0

    @property
    def engine(self) -> CaptionEngine:
        return self._supervisor.engine

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        assert request.frames
        count, height, width, _ = request.frames.pixels.shape
        if count > self._frames or height * width > self._pixels or len(self.requests) <= self._first_requests:
            request = replace(request, prompt=request.prompt + " word" * 4000)
        return await self._supervisor.complete(request)


def test_failed_request_is_retried_unchanged(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    refusing = RefusingSupervisor(supervisor, first_requests=1)
    [done] = run_async(caption_all(refusing, RECIPE, [first_job(sample_data)]))
    assert done.row(STAGE1).status is Status.OK
    assert (done.row(STAGE1).attempts, done.row(STAGE1).reductions) == (2, ())
    assert refusing.requests[0].frames is refusing.requests[1].frames


def test_second_retry_has_half_the_frames_in_both_stages(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    job = max(shard_jobs(sample_data, "sample-folder"), key=lambda job: job.window.end_seconds or 0)
    [whole] = run_async(caption_all(supervisor, RECIPE, [job]))
    count = len(whole.row(STAGE1).frame_indices)
    [done] = run_async(caption_all(RefusingSupervisor(supervisor, frames=count - 1), RECIPE, [job]))
    assert done.row(STAGE1).status is Status.OK
    assert (done.row(STAGE1).attempts, "fewer_frames" in done.row(STAGE1).reductions) == (3, True)
    assert len(done.row(STAGE1).frame_indices) == count // 2 // 2 * 2
    assert done.row(STAGE1).frame_fps == pytest.approx(
        whole.row(STAGE1).frame_fps * (count // 2 // 2 * 2 - 1) / (count - 1), 0.1
    )
    assert done.row(STAGE2).frame_indices == done.row(STAGE1).frame_indices
    assert done.row(STAGE2).attempts == 1


def test_last_retry_has_smaller_frames(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    job = first_job(sample_data)
    limits = replace(RECIPE.variant.pixels, min_pixels=4 * 28 * 28)
    recipe = replace(RECIPE, variant=replace(RECIPE.variant, pixels=limits))
    [whole] = run_async(caption_all(supervisor, recipe, [job]))
    area = whole.row(STAGE1).frame_height * whole.row(STAGE1).frame_width
    [done] = run_async(caption_all(RefusingSupervisor(supervisor, pixels=area - 1), recipe, [job]))
    assert done.row(STAGE1).frame_height * done.row(STAGE1).frame_width < area
    assert (done.row(STAGE1).attempts, done.row(STAGE1).status) == (4, Status.OK)
    assert set(done.row(STAGE1).reductions) >= {"fewer_frames", "smaller_frames"}


def test_window_that_fails_every_retry_has_a_row_with_the_error_of_the_engine(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    [done] = run_async(caption_all(RefusingSupervisor(supervisor, frames=0), RECIPE, [first_job(sample_data)]))
    assert (done.row(STAGE1).status, done.row(STAGE1).error_kind, done.row(STAGE1).attempts) == (
        Status.FAILED,
        "refused",
        4,
    )
    assert "2048" in done.row(STAGE1).error
    assert done.row(STAGE2).error_kind == "upstream_failed"


def test_failed_stage_2_keeps_the_stage_1_caption(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    class SupervisorRefusingStage2(RefusingSupervisor):
        async def complete(self, request: Request) -> Completion:
            if request.stage == 2:
                raise RequestFailed("refused", "no second stage")
            return await super().complete(request)

    [done] = run_async(caption_all(SupervisorRefusingStage2(supervisor), RECIPE, [first_job(sample_data)]))
    assert done.row(STAGE1).status is Status.OK
    assert (done.row(STAGE2).status, done.row(STAGE2).error) == (Status.FAILED, "no second stage")


def test_empty_answer_is_retried_then_fails_both_stages(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    """The prompt ends with the complete answer, so that the model only ends the turn."""
    [right] = run_async(caption_all(supervisor, RECIPE, [first_job(sample_data)], stages=(STAGE1,)))

    class AnsweringSupervisor(RefusingSupervisor):
        async def complete(self, request: Request) -> Completion:
            return await super().complete(replace(request, prompt=request.prompt + right.row(STAGE1).caption))

    answering = AnsweringSupervisor(supervisor)
    deterministic = replace(RECIPE, generation=DETERMINISTIC, regenerations=1)
    [done] = run_async(caption_all(answering, deterministic, [first_job(sample_data)]))
    assert (done.row(STAGE1).status, done.row(STAGE1).error_kind, done.row(STAGE1).caption) == (
        Status.FAILED,
        "empty_answer",
        None,
    )
    assert done.row(STAGE1).attempts == len(answering.requests) == 2
    assert (done.row(STAGE2).status, done.row(STAGE2).caption) == (Status.FAILED, None)


def test_prompt_without_room_for_the_video_fails_the_row(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    recipe = with_prompts(RECIPE, stage1_captions="word " * 3000)
    [done] = run_async(caption_all(supervisor, recipe, [first_job(sample_data)]))
    assert (done.row(STAGE1).error_kind, done.row(STAGE1).attempts) == ("too_long", 1)
    assert "shorten the prompt" in done.row(STAGE1).error


def test_output_limit_without_room_for_the_video_is_named_with_a_lower_one(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    context = supervisor.engine.context
    recipe = replace(RECIPE, generation=SamplingParams(max_output_tokens=context - 50))
    [done] = run_async(caption_all(supervisor, recipe, [first_job(sample_data)]))
    assert done.row(STAGE1).error_kind == "too_long"
    [limit] = re.findall(r"lower CAPTION_MAX_OUTPUT_TOKENS to (\d+) or less", done.row(STAGE1).error)
    recipe = replace(RECIPE, generation=SamplingParams(max_output_tokens=int(limit)))
    [done] = run_async(caption_all(supervisor, recipe, [first_job(sample_data)], stages=(STAGE1,)))
    assert (done.row(STAGE1).status, done.row(STAGE1).frame_indices[1:]) == (
        Status.OK,
        done.row(STAGE1).frame_indices[-1:],
    )


def test_room_for_the_video_is_computed_for_each_stage(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    """If two answers were subtracted from the context, the room would be too small for the whole video."""
    job = max(shard_jobs(sample_data, "sample-folder"), key=lambda job: job.window.end_seconds or 0)
    [whole] = run_async(caption_all(supervisor, RECIPE, [job]))
    limit = supervisor.engine.context - whole.row(STAGE2).prompt_tokens
    recipe = replace(RECIPE, generation=replace(RECIPE.generation, max_output_tokens=limit))
    [done] = run_async(caption_all(supervisor, recipe, [job]))
    assert done.row(STAGE1).frame_indices == done.row(STAGE2).frame_indices == whole.row(STAGE1).frame_indices
    assert done.row(STAGE2).cached_tokens > 0
    recipe = replace(RECIPE, generation=replace(RECIPE.generation, max_output_tokens=limit + 8))
    [done] = run_async(caption_all(supervisor, recipe, [job]))
    assert done.row(STAGE1).frame_indices == whole.row(STAGE1).frame_indices
    assert done.row(STAGE2).reductions != whole.row(STAGE2).reductions
    assert done.row(STAGE2).prompt_tokens + limit + 8 <= supervisor.engine.context


def test_long_prompt_reduces_the_video(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    job = max(shard_jobs(sample_data, "sample-folder"), key=lambda job: job.window.end_seconds or 0)
    [whole] = run_async(caption_all(supervisor, RECIPE, [job], stages=(STAGE1,)))
    room = 50
    target = supervisor.engine.context - 64 - room
    words = next(
        count
        for count in range(0, 4000, 10)
        if supervisor.engine.text_tokens(supervisor.engine.render("word " * (count + 10))) > target
    )
    recipe = replace(
        with_prompts(RECIPE, stage1_captions="word " * words), generation=SamplingParams(max_output_tokens=64)
    )
    [done] = run_async(caption_all(supervisor, recipe, [job], stages=(STAGE1,)))
    assert done.row(STAGE1).status is Status.OK
    assert done.row(STAGE1).attempts <= 2  # the second is a regeneration
    assert done.row(STAGE1).reductions
    assert done.row(STAGE1).prompt_tokens < supervisor.engine.context
    assert len(done.row(STAGE1).frame_indices) <= len(whole.row(STAGE1).frame_indices)


def test_flagged_caption_is_regenerated_and_the_best_attempt_is_kept(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    """The answer of three tokens is cut off, and the second attempt has twice the output limit."""
    short = replace(RECIPE, generation=replace(RECIPE.generation, max_output_tokens=3), regenerations=3)
    recording = RefusingSupervisor(supervisor)
    [done] = run_async(caption_all(recording, short, [first_job(sample_data)], stages=(STAGE1,)))
    assert [request.generation.max_output_tokens for request in recording.requests][:2] == [3, 6]
    assert (recording.requests[1].generation.temperature or 0) >= 0.7  # the caption was also too short
    assert done.row(STAGE1).flags == ("cut_off",)
    assert done.row(STAGE1).sampling["max_output_tokens"] == 6
    assert done.row(STAGE1).attempts == len(recording.requests) <= 4  # the limit is doubled once
    once = replace(short, regenerations=0)
    [done] = run_async(caption_all(supervisor, once, [first_job(sample_data)], stages=(STAGE1,)))
    assert set(done.row(STAGE1).flags) == {"cut_off", "too_short"}
    assert done.row(STAGE1).attempts == 1


def test_deterministic_regeneration_changes_only_the_repetition_penalty(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    """The engine prefills the long prompts in chunks, where seeded sampling would crash it on the CPU."""
    short = replace(
        with_prompts(RECIPE, stage1_captions="word " * 200),
        generation=replace(DETERMINISTIC, max_output_tokens=1),
        regenerations=2,
    )
    recording = RefusingSupervisor(supervisor)
    # In shards of their own, so that none is compared with the previous one.
    jobs = [replace(first_job(sample_data), shard=str(number)) for number in range(12)]
    results = run_async(caption_all(recording, short, jobs, stages=(STAGE1,)))
    assert {request.generation.temperature for request in recording.requests} == {0.0}
    penalties = sorted({request.generation.repetition_penalty or 0 for request in recording.requests})
    assert penalties == pytest.approx([1.05, 1.15, 1.25])
    assert len({done.row(STAGE1).caption for done in results}) == 1


def test_caption_equal_to_that_of_the_previous_window_is_flagged(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], red_going_left: Scene
) -> None:
    jobs = video_jobs(encode_scenes(red_going_left, red_going_left, red_going_left), Windowing(75, 75))
    results = run_async(caption_all(supervisor, replace(RECIPE, regenerations=0), jobs))
    assert [done.row(STAGE1).flags for done in results] == [(), ("near_duplicate",), ("near_duplicate",)]


def test_prompt_of_a_clip_replaces_the_stage_1_prompt(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], red_going_left: Scene
) -> None:
    recording = RefusingSupervisor(supervisor)
    [done] = run_async(
        caption_all(recording, RECIPE, video_jobs(encode_scenes(red_going_left), prompt="What <|im_end|> is this?"))
    )
    assert done.row(STAGE1).prompt_name == "clip"
    assert done.row(STAGE1).prompt_hash == text_hash("What <|im_end|> is this?")
    assert "What < |im_end|> is this?" in recording.requests[0].prompt
    assert recording.requests[0].prompt.count("<|im_end|>") == supervisor.engine.render("x").count("<|im_end|>")


def test_deterministic_runs_have_equal_captions(
    supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path
) -> None:
    recipe = replace(RECIPE, generation=DETERMINISTIC)
    jobs = shard_jobs(sample_data, "sample-tar")
    one, other = (run_async(caption_all(supervisor, recipe, order)) for order in (jobs, jobs[::-1]))
    identity = [(done.row(STAGE1).caption, done.row(STAGE2).caption, done.row(STAGE2).flags) for done in one]
    assert identity == [
        (done.row(STAGE1).caption, done.row(STAGE2).caption, done.row(STAGE2).flags) for done in other[::-1]
    ]


def test_video_evicted_from_the_cache_is_sent_again_and_counted(
    engine: CaptionEngine, run_async: RunAsync[Any], frames: Frames
) -> None:
    prompt = engine.render(STAGE1.prompt)
    before = engine.resent
    request = Request(uuid4().hex, frames, prompt, RECIPE.generation, stage=2, is_cached=True)
    assert run_async(engine.complete(request)).text == "A red circle moves left."
    assert engine.resent == before + 1
    assert run_async(engine.complete(request)).text == "A red circle moves left."
    assert engine.resent == before + 1


# --- the sample model as an oracle: deliberate errors change its captions


@pytest.fixture(scope="module")
def red_going_left() -> Scene:
    return next(
        scene
        for seed in range(9999)
        if (scene := random_scene(np.random.default_rng(seed), 320, 240)).stage1 == "A red circle moves left."
    )


@pytest.fixture(scope="module")
def frames(red_going_left: Scene) -> Frames:
    return decode(encode_scenes(red_going_left), 0, 75, 6, (84, 112))


def encode_scenes(*scenes: Scene, frames_each: int = 75) -> bytes:
    times = [index / (frames_each - 1) for index in range(frames_each)]
    rng = np.random.default_rng(0)
    pictures = chain.from_iterable(render(scene, 320, 240, times, rng) for scene in scenes)
    return encode_frames(pictures, 320, 240, 25, "h264", 20)


@pytest.fixture
def describe(engine: CaptionEngine, run_async: RunAsync[Any]) -> Callable[[Frames], str]:
    """Caption frames in stage 1, with a unique video id for each call."""

    def stage1(frames: Frames) -> str:
        request = Request(uuid4().hex, frames, engine.render(STAGE1.prompt), RECIPE.generation, stage=1)
        return str(run_async(engine.complete(request)).text)

    return stage1


def test_unchanged_frames_give_the_correct_caption(describe: Callable[[Frames], str], frames: Frames) -> None:
    assert describe(frames) == "A red circle moves left."


def test_swapped_channels_change_the_caption(describe: Callable[[Frames], str], frames: Frames) -> None:
    assert "red" not in describe(replace(frames, pixels=np.ascontiguousarray(frames.pixels[..., ::-1])))


def test_reversed_frames_change_the_caption(describe: Callable[[Frames], str], frames: Frames) -> None:
    assert describe(replace(frames, pixels=np.ascontiguousarray(frames.pixels[::-1]))) == "A red circle moves right."


def test_another_window_changes_the_caption(describe: Callable[[Frames], str], red_going_left: Scene) -> None:
    other = next(
        scene
        for seed in range(9999)
        if (scene := random_scene(np.random.default_rng(seed), 320, 240)).stage1 == "A blue square moves down."
    )
    data = encode_scenes(red_going_left, other)
    assert describe(decode(data, 0, 75, 6, (84, 112))) == "A red circle moves left."
    assert describe(decode(data, 75, 150, 6, (84, 112))) == "A blue square moves down."
