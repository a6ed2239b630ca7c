"""Windows through a stand-in for the engine: who waits for whom, and what becomes of one that does not work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.captioner import SPARE_TOKENS
from caption_assets.captioning.recipe import Recipe, SamplingParams
from caption_assets.captioning.request import Completion, ReasoningCutOff, Request, RequestFailed
from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.store.tables import Status
from caption_assets.video.window import Windowing
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.window_jobs import video_jobs
from tests.conftest import caption_all
from tests.videos import moving_video

pytestmark = pytest.mark.fast

ALIKE = "nothing at all happens in this quiet street"
RECIPE = Recipe()


class Scripted(FakeEngine):
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Request], str | None]) -> None:
        super().__init__()
        self._answer = answer
        self.requests: list[Request] = []
        self.finish_reason = "stop"

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        if (text := self._answer(request)) is None:
            raise RequestFailed("timeout", "it was told to fail")
        return Completion(text, self.finish_reason, 100, 0, len(text.split()))


def run(engine: FakeEngine, jobs: list[WindowJob], recipe: Recipe = RECIPE) -> list[WindowJob]:
    async def all_of_it() -> list[WindowJob]:
        async with EngineSupervisor(lambda: start_fake_engine(engine)) as supervisor:
            return await caption_all(supervisor, recipe, jobs)

    return asyncio.run(all_of_it())


@pytest.fixture(scope="module")
def windows() -> list[WindowJob]:
    """Twelve windows of one clip."""
    return video_jobs(moving_video(288), Windowing(24, 12))


def is_first(request: Request) -> bool:
    """Whether it is drawn as the recipe says, and not as one that is generated again."""
    return request.generation == RECIPE.generation


class Together(FakeEngine):
    """Says the same of all windows, and answers none that is asked again before ``count`` of them are."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count
        self._all_there = asyncio.Event()

    async def complete(self, request: Request) -> Completion:
        if request.stage == 1 and not is_first(request):
            self._left -= 1
            if not self._left:
                self._all_there.set()
            await asyncio.wait_for(self._all_there.wait(), 20)
        return Completion(ALIKE, "stop", 100, 0, 8)


def test_windows_that_look_alike_are_generated_again_side_by_side(windows: list[WindowJob]) -> None:
    done = run(Together(11), windows)
    assert [row.row(STAGE1).flags for row in done] == [(), *[("near_duplicate",)] * 11]
    assert all(row.ok for row in done)


class Thinking(FakeEngine):
    """Reasons for a number of tokens before it answers."""

    def __init__(self, tokens: int, context: int = 2048) -> None:
        super().__init__()
        self.context = context
        self._tokens = tokens
        self.limits_asked: list[int] = []

    async def complete(self, request: Request) -> Completion:
        limit = request.generation.max_output_tokens
        self.limits_asked.append(limit)
        if limit <= self._tokens:
            raise ReasoningCutOff(100, limit)
        return Completion("a dog crosses the road", "stop", 100, 0, limit)


def test_an_answer_that_is_cut_off_inside_a_thought_is_asked_for_again_with_more_room(windows: list[WindowJob]) -> None:
    engine = Thinking(tokens=300)
    [done] = run(engine, windows[:1], replace(RECIPE, generation=SamplingParams(max_output_tokens=100)))
    assert done.ok
    assert engine.limits_asked == [100, 200, 400] * 2
    row = done.row(STAGE1)
    assert row.sampling is not None
    assert (row.attempts, row.sampling["max_output_tokens"]) == (3, 400)


def test_a_model_that_reasons_without_end_fails_with_its_kind(windows: list[WindowJob]) -> None:
    engine = Thinking(tokens=10**9)
    [done] = run(engine, windows[:1], replace(RECIPE, generation=SamplingParams(max_output_tokens=100)))
    assert (done.row(STAGE1).error_kind, done.row(STAGE1).caption) == ("reasoning_cut_off", None)
    assert "still reasoning after 800 tokens: raise CAPTION_MAX_OUTPUT_TOKENS" in (done.row(STAGE1).error or "")
    assert engine.limits_asked == [100, 200, 400, 800]


class Hanging(FakeEngine):
    """Lets one window fail, the second time not before another is at its stage 2."""

    def __init__(self, window_id: str) -> None:
        super().__init__()
        self._window_id = window_id
        self._tries = 0
        self._other_at_stage2 = asyncio.Event()

    async def complete(self, request: Request) -> Completion:
        if request.video_id.startswith(self._window_id):
            self._tries += 1
            if self._tries == 2:
                await asyncio.wait_for(self._other_at_stage2.wait(), 20)
            raise RequestFailed("timeout", "it hangs")
        if request.stage == 2:
            self._other_at_stage2.set()
        return Completion(f"{ALIKE} {request.video_id}", "stop", 100, 0, 8)


def test_a_window_that_hangs_holds_up_none_of_its_clip(windows: list[WindowJob]) -> None:
    done = run(Hanging(windows[0].window.window_id), windows)
    assert (done[0].row(STAGE1).error_kind, done[0].row(STAGE1).attempts) == ("timeout", 4)
    assert all(row.ok for row in done[1:])


def test_a_regeneration_that_fails_leaves_stage_2_the_same_frames(windows: list[WindowJob]) -> None:
    engine = Scripted(lambda request: ("short" if request.stage == 1 else ALIKE) if is_first(request) else None)
    [done] = run(engine, windows[:1])
    assert done.row(STAGE2) is not None
    assert (done.row(STAGE1).caption, done.row(STAGE1).attempts, done.row(STAGE2).status) == ("short", 2, Status.OK)
    assert done.row(STAGE2).frame_indices == done.row(STAGE1).frame_indices
    assert engine.requests[-1].is_cached
    assert engine.requests[-1].video_id == engine.requests[0].video_id


def test_windows_take_turns_on_the_replicas_and_keep_to_theirs(windows: list[WindowJob]) -> None:
    engine = Scripted(lambda request: f"{ALIKE} {request.video_id}")
    run(engine, [replace(job, shard=f"shard-{number}") for number, job in enumerate(windows)])
    replicas = [{request.replica for request in engine.requests if request.stage == stage} for stage in (1, 2)]
    assert replicas == [set(range(12))] * 2
    assert len({(request.video_id, request.replica) for request in engine.requests}) == 12


def test_a_longer_stage_1_leaves_stage_2_its_room(windows: list[WindowJob]) -> None:
    most = 300
    recipe = replace(RECIPE, generation=SamplingParams(max_output_tokens=most))
    engine = Scripted(lambda request: f"{ALIKE} {request.video_id}")
    engine.finish_reason = "length"
    engine.context = len(RECIPE.prompt.stage2) + 2 * most + SPARE_TOKENS + 60
    run(engine, windows[:1], recipe)
    first, longer = (request for request in engine.requests if request.stage == 1)
    assert most == first.generation.max_output_tokens < longer.generation.max_output_tokens < 2 * most
    frames, height, width, _ = first.frames.pixels.shape
    video = asyncio.run(engine.video_tokens(FrameGrid(frames, height, width), first.frames.fps))
    beside = len(RECIPE.prompt.stage2_text("")) + SPARE_TOKENS
    assert video + beside + longer.generation.max_output_tokens + most == engine.context
