"""Tests of a window job's state and of its failed rows."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.window_job import JobStatus, Origin, WindowJob
from caption_assets.models.checkpoint import Lora
from caption_assets.store.tables import CaptionRow, ManifestRow, Status
from tests.captioning.test_recipe import WINDOW
from tests.stages import STAGE1, STAGE2, STAGES, two_stages

pytestmark = pytest.mark.fast

RECIPE = two_stages(lora=Lora("some/adapter", "3"), quality_rules=2)
CAPTION = "A dog runs across a wet road."
GRID = FrameGrid(2, 28, 28)


def window_job(window: ManifestRow = WINDOW, *, shard: str = "a") -> WindowJob:
    return WindowJob(window, list, STAGES, shard)


def ok_row(job: WindowJob, caption: str = CAPTION) -> CaptionRow:
    """A row of stage 1 with a caption."""
    return replace(job.blank_row(RECIPE, STAGE1), status=Status.OK, caption=caption, attempts=1)


@pytest.fixture
def failed() -> WindowJob:
    """A job that failed after four attempts of earlier runs."""
    job = window_job()
    job.earlier_attempts = {STAGE1.name: 4}
    job.show(STAGE1, GRID)
    job.fail(RECIPE, "timeout", "it took too long")
    return job


def test_failed_window_has_a_row_of_each_stage(failed: WindowJob) -> None:
    first, second = (failed.rows[stage.name] for stage in STAGES)
    assert (first.origin, second.origin) == (Origin.FRESH, Origin.UNCAPTIONABLE)
    assert (first.row.status, first.row.error_kind, first.row.error) == (Status.FAILED, "timeout", "it took too long")
    assert (first.row.attempts, first.row.fingerprint) == (5, RECIPE.fingerprint(STAGE1, WINDOW))
    assert (second.row.error_kind, second.row.attempts, second.row.fingerprint) == ("upstream_failed", 0, None)
    assert (failed.ok, failed.missing, failed.status) == (False, [], JobStatus.FINISHED)


def test_stage_2_of_a_window_without_room_has_the_fingerprint_of_a_reduced_one() -> None:
    job = window_job()
    job.add_row(STAGE1, ok_row(job))
    assert (job.status, job.missing) == (JobStatus.WAITING, [STAGE2])
    job.fail(RECIPE, "too_long", "no room")
    row = job.row(STAGE2)
    assert row.fingerprint == RECIPE.fingerprint(STAGE2, WINDOW, {STAGE1.name: CAPTION}, reduced=True)
    assert (row.attempts, row.upstream_fingerprints) == (1, {STAGE1.name: job.row(STAGE1).fingerprint})


def test_unreadable_window_has_no_attempts_and_no_fingerprint() -> None:
    job = window_job(replace(WINDOW, status=Status.FAILED))
    job.fail(RECIPE, "damaged", "it is damaged")
    assert {made.origin for made in job.rows.values()} == {Origin.UNCAPTIONABLE}
    assert [(row.attempts, row.fingerprint) for row in map(job.row, STAGES)] == [(0, None)] * 2


def test_row_names_model_adapter_and_prompt() -> None:
    row = window_job().blank_row(RECIPE, STAGE1)
    assert (row.model, row.revision) == (RECIPE.variant.hub_id, RECIPE.variant.revision)
    assert (row.lora, row.lora_revision) == ("some/adapter", "3")
    assert (row.prompt_name, row.prompt_hash) == ("general", text_hash(STAGE1.prompt))
    own = window_job(replace(WINDOW, prompt="Who is it?")).blank_row(RECIPE, STAGE1)
    assert (own.prompt_name, own.prompt_hash) == ("clip", text_hash("Who is it?"))


def test_row_that_replaces_an_outdated_one_has_a_fingerprint_with_the_rules() -> None:
    job = window_job()
    usual = job.blank_row(RECIPE, STAGE1)
    job.outdated[STAGE1.name] = ok_row(job)
    assert usual.fingerprint == RECIPE.fingerprint(STAGE1, WINDOW)
    assert job.blank_row(RECIPE, STAGE1).fingerprint == RECIPE.fingerprint(STAGE1, WINDOW, quality_rules=2)


def test_outdated_caption_is_kept_if_its_regeneration_fails_or_is_not_better() -> None:
    for changes in ({"caption": None, "status": Status.FAILED}, {"caption": "Sure! A dog.", "flags": ("boilerplate",)}):
        job = window_job()
        job.outdated[STAGE1.name] = earlier = replace(ok_row(job), flags=("boilerplate",))
        job.add_row(STAGE1, replace(ok_row(job), attempts=3, **changes))
        assert job.rows[STAGE1.name].origin is Origin.FRESH
        assert job.row(STAGE1) == replace(earlier, attempts=3)


def test_outdated_caption_is_replaced_by_a_better_one() -> None:
    job = window_job()
    job.outdated[STAGE1.name] = replace(ok_row(job, f"Sure! {CAPTION}"), flags=("boilerplate",))
    job.add_row(STAGE1, better := ok_row(job))
    assert (job.row(STAGE1), job.outdated) == (better, {})


def test_window_is_compared_only_with_the_previous_one_of_its_clip() -> None:
    job = window_job()
    for other in (None, window_job(replace(WINDOW, clip_key="b.mp4")), window_job(shard="b")):
        job.set_previous(other)
        assert job.previous is None
    job.set_previous(previous := window_job())
    assert job.previous is previous


def test_stages_share_a_video_until_the_last_row() -> None:
    job = window_job()
    video = job.show(STAGE1, GRID)
    job.add_row(STAGE1, ok_row(job))
    assert job.show(STAGE2, replace(GRID)) is video
    job.fail(RECIPE, "timeout", "it took too long")
    assert job.show(STAGE2, GRID) is not video


def test_video_that_no_unfinished_stage_shows_is_dropped() -> None:
    smaller = replace(GRID, frames=1)
    job = window_job()
    whole = job.show(STAGE1, GRID)
    job.show(STAGE2, GRID)
    job.show(STAGE1, smaller)
    assert job.show(STAGE2, GRID) is whole
    job.show(STAGE2, smaller)
    assert job.show(STAGE2, GRID) is not whole
    job.add_row(STAGE1, ok_row(job))
    reduced = job.show(STAGE2, smaller)
    job.show(STAGE2, GRID)
    assert job.show(STAGE2, smaller) is not reduced


def test_stage_starts_with_the_reduced_video_of_one_that_it_needs() -> None:
    job = window_job()
    job.whole = GRID
    assert job.start(STAGE2) == GRID
    job.reduced[STAGE1.name] = smaller = replace(GRID, frames=1)
    assert (job.start(STAGE1), job.start(STAGE2)) == (GRID, smaller)


def test_first_answer_is_not_changed_by_later_ones() -> None:
    async def run() -> None:
        job = window_job()
        waiting = asyncio.create_task(job.first_answer(STAGE1))
        await asyncio.sleep(0)
        assert not waiting.done()
        job.set_answer(STAGE1, None)
        assert await asyncio.wait_for(waiting, 5) is None
        job.add_row(STAGE1, ok_row(job))
        assert await job.first_answer(STAGE1) is None

    asyncio.run(run())


def test_row_without_a_request_is_the_first_answer() -> None:
    async def run() -> tuple[str | None, str | None]:
        job = window_job()
        waiting = asyncio.create_task(job.first_answer(STAGE1))
        await asyncio.sleep(0)
        job.add_row(STAGE1, ok_row(job), reused=True)
        job.fail(RECIPE, "timeout", "it took too long")
        return await asyncio.wait_for(waiting, 5), await asyncio.wait_for(job.first_answer(STAGE2), 5)

    assert asyncio.run(run()) == (CAPTION, None)
