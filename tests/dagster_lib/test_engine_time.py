import time

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.open_shard import Published, PublishedTable
from caption_assets.captioning.window_job import DECODE, STORE
from caption_assets.dagster_lib.caption_metadata import Cost, engine_costs
from caption_assets.dagster_lib.engine_time import EngineClock, EngineTime
from caption_assets.report.shard_summary import Spending
from caption_assets.store.tables import CaptionRow, Status
from caption_assets.store.versions import TableVersions
from tests.stages import STAGES

pytestmark = pytest.mark.fast

VERSIONS = TableVersions("data", "code", {})


@given(st.floats(0, 100), st.lists(st.floats(0.01, 1000), min_size=1, max_size=9))
def test_engine_clock_divides_the_engines_time_among_shards(start: float, shards: list[float]) -> None:
    now = [5.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])
        clock = EngineClock()
        clock.start()
        now[0] += start
        assert clock.ready() == pytest.approx(start)
        times = []
        for seconds in shards:
            now[0] += seconds
            times.append(clock.take())
    assert sum(share.seconds for share in times) == pytest.approx(start + sum(shards))
    assert {share.start_seconds for share in times} == {times[0].start_seconds}


def test_run_without_an_engine_has_no_engine_time() -> None:
    assert EngineClock().take() == EngineTime(0.0, None)
    cost = Cost(Published({}, {STORE: 1.0}), EngineTime(), gpus=1, gpu_hour_price=2.0)
    assert engine_costs(STAGES[0].name, PublishedTable("x", [], 0, [], VERSIONS), cost) == {}


def test_tables_of_a_shard_share_its_engine_time_and_cost() -> None:
    row = CaptionRow("a.mp4", 0, "id", 0.0, 1.0, Status.OK, prompt_tokens=90, output_tokens=10)
    table = PublishedTable("x", [row], 0, [row], VERSIONS)
    first_stage, second_stage = (stage.name for stage in STAGES)
    published = Published({}, {DECODE: 2.0, first_stage: 3.0, second_stage: 1.0, STORE: 2.0})
    cost = Cost(published, EngineTime(1800.0, 60.0), 4, 2.5)
    assert cost.spending == Spending(1800.0, 7200.0, 5.0)
    first, second = (engine_costs(stage.name, table, cost) for stage in STAGES)
    assert (first["gpu_seconds"], second["gpu_seconds"]) == (5400.0, 1800.0)
    assert (first["cost"], second["cost"]) == (3.75, 1.25)  # of 4 GPUs for half an hour
    assert first["engine_start_seconds"] == second["engine_start_seconds"] == 60.0
    assert first["time_shares"] == dg.MetadataValue.json({"decode": 0.25, "engine": 0.5, "store": 0.25})
