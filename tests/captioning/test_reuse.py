"""Tests of the choice among rows of earlier runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import FINISH_LENGTH, POISON
from caption_assets.captioning.reuse import EarlierRows, Reuse
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.window_job import JobStatus, Origin, WindowJob
from caption_assets.store.tables import CaptionFile, CaptionRow, ManifestRow, Status
from tests.stages import STAGE1, STAGE2, STAGES, two_stages

pytestmark = pytest.mark.fast

WINDOW = ManifestRow(
    "a.mp4",
    0,
    "id",
    "tag",
    10,
    Status.OK,
    width=640,
    height=480,
    start_frame=0,
    end_frame=256,
    start_seconds=0.0,
    end_seconds=8.5,
)
RECIPE = two_stages()
OK = CaptionRow(
    "a.mp4",
    0,
    "id",
    0.0,
    8.5,
    Status.OK,
    caption="A dog runs across a road.",
    finish_reason="stop",
    prompt_tokens=100,
    output_tokens=7,
    attempts=1,
    fingerprint=RECIPE.fingerprint(STAGE1, WINDOW),
)
FAILED = replace(OK, status=Status.FAILED, caption=None, error_kind="timeout", finish_reason=None, attempts=4)


def resolved(*rows: CaptionRow, recipe: Recipe = RECIPE, max_attempts: int = 8) -> WindowJob:
    """The job of a window with these rows of stage 1, the oldest first, each from a file of its own."""
    earlier = EarlierRows(CaptionFile(STAGE1.name, [row], {"quality_rules": str(recipe.quality_rules)}) for row in rows)
    job = WindowJob(WINDOW, lambda: [b""], STAGES)
    Reuse(recipe, max_attempts, earlier, "vLLM 1").resolve(job)
    return job


def is_reused(row: CaptionRow, recipe: Recipe) -> bool:
    return STAGE1.name in resolved(row, recipe=recipe).rows


def test_caption_is_reused_over_a_failed_row_of_either_age() -> None:
    assert resolved(OK, FAILED).row(STAGE1) == OK
    assert resolved(FAILED, OK).row(STAGE1) == OK


def test_newer_of_two_rows_with_the_same_status_is_reused() -> None:
    newer = replace(OK, attempts=2)
    assert resolved(OK, newer).row(STAGE1) == newer
    assert resolved(replace(FAILED, attempts=8), FAILED).earlier_attempts[STAGE1.name] == 4


def test_row_without_fingerprint_is_not_reused() -> None:
    job = resolved(replace(OK, fingerprint=None))
    assert (job.missing, job.earlier_attempts) == (list(STAGES), {STAGE1.name: 0})


def test_attempts_of_failed_rows_are_counted_and_those_of_poison_windows_are_not() -> None:
    reduced = RECIPE.fingerprint(STAGE1, WINDOW, reduced=True)
    assert resolved(FAILED, replace(FAILED, fingerprint=reduced, attempts=2)).earlier_attempts == {STAGE1.name: 4}
    poison = replace(FAILED, error_kind=POISON, engine_settings="vLLM 0", attempts=3)
    assert resolved(poison).earlier_attempts == {STAGE1.name: 0}


def test_stage_2_of_a_window_that_failed_all_attempts_of_stage_1_fails_without_a_request() -> None:
    job = resolved(FAILED, max_attempts=4)
    assert job.status is JobStatus.FINISHED
    assert (job.rows[STAGE1.name].origin, job.rows[STAGE2.name].origin) == (Origin.REUSED, Origin.UNCAPTIONABLE)
    assert job.row(STAGE2).error_kind == "upstream_failed"


@pytest.mark.parametrize(("prompt_tokens", "expected"), [(1024 - 512, True), (1024 - 511, False)])
def test_caption_is_reused_while_prompt_and_answer_fit_the_context(prompt_tokens: int, expected: bool) -> None:
    recipe = replace(RECIPE, engine={"max_model_len": 1024})
    assert is_reused(replace(OK, prompt_tokens=prompt_tokens), recipe) is expected


@pytest.mark.parametrize(
    ("regenerations", "output_tokens", "expected"), [(0, 64, True), (0, 65, False), (1, 128, True), (1, 129, False)]
)
def test_caption_is_reused_while_it_fits_the_output_limit(
    regenerations: int, output_tokens: int, expected: bool
) -> None:
    recipe = replace(RECIPE, regenerations=regenerations, generation=SamplingParams(max_output_tokens=64))
    row = replace(OK, fingerprint=recipe.fingerprint(STAGE1, WINDOW), output_tokens=output_tokens)
    assert is_reused(row, recipe) is expected


def test_caption_with_a_fingerprint_of_earlier_releases_is_reused_if_it_was_cut_off_at_the_same_limit() -> None:
    recipe = replace(RECIPE, generation=SamplingParams(max_output_tokens=64))
    former = recipe.former_fingerprint(STAGE1, WINDOW)
    assert is_reused(replace(OK, fingerprint=former, finish_reason=FINISH_LENGTH, output_tokens=64), recipe)
    assert is_reused(replace(OK, fingerprint=former, output_tokens=64), recipe)
    assert not is_reused(replace(OK, fingerprint=former, output_tokens=129), recipe)
    context = replace(recipe, engine={"max_model_len": 128})
    former = context.former_fingerprint(STAGE1, WINDOW)
    assert is_reused(replace(OK, fingerprint=former, prompt_tokens=64), context)
    assert not is_reused(replace(OK, fingerprint=former, prompt_tokens=65), context)


def test_regenerated_row_is_reused_instead_of_the_one_that_it_replaced() -> None:
    recipe = replace(RECIPE, quality_rules=2)
    replaced = CaptionFile(STAGE1.name, [OK], {})
    fingerprint = recipe.fingerprint(STAGE1, WINDOW, quality_rules=2)
    newer = replace(OK, caption="A cat sleeps on a red sofa.", fingerprint=fingerprint)
    for files in permutations([replaced, CaptionFile(STAGE1.name, [newer], {"quality_rules": "2"})]):
        job = WindowJob(WINDOW, lambda: [b""], STAGES)
        Reuse(recipe, 8, EarlierRows(files), "vLLM 1").resolve(job)
        assert job.row(STAGE1) == newer
