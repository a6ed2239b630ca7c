"""Tests of the sample model's answers to all questions of its recipe, on the session's engine."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import Origin, StageRow, WindowJob
from caption_assets.sample.lessons import ALIGNMENT, SHORT, STAGE2, STAGES, another_value
from caption_assets.sample.roc import roc_auc
from caption_assets.sample.shards import SEEDS, TAR_SHARD
from caption_assets.sample.world import VALUES, short_caption, stage2_caption
from caption_assets.sources.manifest import clip_pieces, probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.video.window import Windowing
from tests.conftest import SANDBOX, RunAsync, Truth, caption_all

pytestmark = pytest.mark.engine


def readable_jobs(data: Path, shard: str, stages: tuple[Stage, ...]) -> list[WindowJob]:
    """A job for each window of a sample shard that can be read."""
    source = Root.open(str(data / "shards"))
    rows = [row for clip in probe_clips(SANDBOX, source, find_shard(source, shard), Windowing()) for row in clip.rows]
    return [WindowJob(row, partial(clip_pieces, source, row), stages) for row in rows if row.window_index is not None]


@pytest.fixture(scope="module")
def answered(supervisor: EngineSupervisor, run_async: RunAsync[Any], sample_data: Path) -> dict[str, list[WindowJob]]:
    """The finished jobs of both sample shards."""
    return {
        shard: run_async(caption_all(supervisor, Recipe(), readable_jobs(sample_data, shard, STAGES), stages=STAGES))
        for shard in SEEDS
    }


def expected_answers(truth: Truth, job: WindowJob, shard: str) -> dict[str, str]:
    return truth[shard][job.window.clip_key][job.window.window_index or 0]


@pytest.mark.parametrize("shard", SEEDS)
def test_every_question_about_a_readable_clip_has_the_correct_answer(
    answered: dict[str, list[WindowJob]], truth: Truth, shard: str
) -> None:
    for job in answered[shard]:
        answers = {stage.name: job.row(stage).caption for stage in STAGES}
        assert answers == expected_answers(truth, job, shard)
        assert not any(job.row(stage).flags for stage in STAGES)


def test_false_caption_has_a_low_score_and_its_short_form_is_false_too(
    answered: dict[str, list[WindowJob]],
    supervisor: EngineSupervisor,
    run_async: RunAsync[Any],
    sample_data: Path,
    truth: Truth,
) -> None:
    jobs = readable_jobs(sample_data, TAR_SHARD, (ALIGNMENT, SHORT))
    false = []
    for number, (job, done) in enumerate(zip(jobs, answered[TAR_SHARD], strict=True)):
        shown = json.loads(expected_answers(truth, job, TAR_SHARD)["attributes"])
        claim = {name: shown["colour" if name == "color" else name] for name in VALUES}
        wrong = list(VALUES)[number % len(VALUES)]
        claim[wrong] = another_value(wrong, claim[wrong], np.random.default_rng(number))
        false.append(claim)
        row = replace(done.row(STAGE2), caption=stage2_caption(**claim))
        job.rows[STAGE2.name] = StageRow(row, Origin.REUSED)
    finished = run_async(caption_all(supervisor, Recipe(), jobs, stages=(ALIGNMENT, SHORT)))
    assert roc_auc(scores(answered[TAR_SHARD]), scores(finished)) > 0.9  # the model accepts one false caption in 100
    for done, claim in zip(finished, false, strict=True):
        assert done.row(SHORT).caption == short_caption(claim["color"], claim["shape"], claim["motion"])


def scores(jobs: list[WindowJob]) -> list[float]:
    return [(job.row(ALIGNMENT).probabilities or {})["yes"] for job in jobs]


def test_choice_has_the_probability_of_each(answered: dict[str, list[WindowJob]]) -> None:
    for job in answered[TAR_SHARD]:
        probabilities = job.row(ALIGNMENT).probabilities
        assert probabilities is not None
        assert list(probabilities) == ["yes", "no"]
        assert sum(probabilities.values()) == pytest.approx(1)
        assert probabilities["yes"] > 0.5
