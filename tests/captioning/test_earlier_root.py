"""A root that an earlier release captioned; see the fixture's README."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.models.variants import SAMPLE
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, read_captions, read_manifest, table_path
from tests.captioning.run_events import RunEvents
from tests.conftest import SANDBOX
from tests.stages import STAGE1, STAGE2, STAGES

pytestmark = pytest.mark.fast

FIXTURE = Path(__file__).parents[1] / "fixtures" / "root_before_window_job"
SHARD = "shard"
RECIPE = Recipe(replace(SAMPLE, revision="df6e68bd6004"), graph=built_in("general"), quality_rules=1)
"""The earlier release had other weights of the sample model, and version 1 of the quality rules."""


def start_no_engine() -> AbstractAsyncContextManager[CaptionEngine]:
    raise AssertionError("an engine was started, though every row is stored")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A copy of the earlier root."""
    return Root.open(str(shutil.copytree(FIXTURE, tmp_path / "root")))


def with_present_error(row: CaptionRow) -> CaptionRow:
    """A row of the earlier release, with the present error if stage 1 failed."""
    if row.error_kind != "stage1_failed":
        return row
    error = "stage1_captions failed for this window: see its row there"
    return replace(row, error_kind="upstream_failed", error=error)


@pytest.mark.parametrize("stages", [STAGES, (STAGE1,), (STAGE2,)], ids=["both", "stage1", "stage2"])
def test_run_over_earlier_root_reuses_every_row(root: Root, stages: tuple[Stage, ...]) -> None:
    tables = frozenset(stage.name for stage in stages)
    stored = {table: read_captions(root, table, SHARD) for table in tables}
    schemas = {table: pq.read_schema(root.full(table_path(table, SHARD))).remove_metadata() for table in tables}
    events = RunEvents()
    run = CaptionRun(root, Root.open(f"{root.url}/shards"), RECIPE, stages, engine_settings="other")
    asyncio.run(caption_shards(EngineSupervisor(start_no_engine), SANDBOX, run, [SHARD], [events]))
    assert (events.failures, events.warnings) == ({}, [])
    assert {table: (made.reused, made.fresh) for table, made in events.tables[SHARD].items()} == dict.fromkeys(
        tables, (5, [])
    )
    published = {table: read_captions(root, table, SHARD) for table in tables}
    assert published == {table: list(map(with_present_error, rows)) for table, rows in stored.items()}
    for table, earlier in schemas.items():
        schema = pq.read_schema(root.full(table_path(table, SHARD)))
        kept = [field for field in earlier if field.name != "stage1_fingerprint"]  # now `upstream_fingerprints`
        assert [schema.field(field.name) for field in kept] == kept
        assert schema.names[0] == "shard"
        assert pq.ParquetFile(root.full(table_path(table, SHARD))).read()["shard"].to_pylist() == [SHARD] * 6


def test_stage_2_of_earlier_root_names_the_rows_that_it_was_made_from(root: Root) -> None:
    stage1, stage2 = (read_captions(root, stage.name, SHARD) for stage in STAGES)
    upstream = [None if row.fingerprint is None else {STAGE1.name: row.fingerprint} for row in stage1]
    assert [row.upstream_fingerprints for row in stage2] == upstream


def test_rows_of_earlier_root_have_captions_of_both_stages(root: Root) -> None:
    for stage in STAGES:
        rows = read_captions(root, stage.name, SHARD)
        assert [row.key for row in rows] == [row.key for row in read_manifest(root, SHARD)]
        assert [row.caption is not None for row in rows] == [True] * 5 + [False]
