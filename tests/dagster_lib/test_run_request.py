import warnings
from collections.abc import Iterator

import dagster as dg
import pytest

from caption_assets.dagster_lib.run_request import count_requests, request_tags, requested_shards, shards_to_process

pytestmark = pytest.mark.fast

MANIFEST, CAPTIONS = dg.AssetKey("clip_manifest"), dg.AssetKey(["street", "stage2_captions"])
MAX_INDEXED_BYTES = 2704
"""PostgreSQL's limit for a row of a B-tree index, such as the one of Dagster's tags."""
LONG = "s" * 255


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def launch(instance: dg.DagsterInstance, tags: dict[str, str]) -> None:
    instance.add_run(dg.DagsterRun(job_name="j", tags=tags))


@pytest.mark.parametrize("count", [1, 1000])
def test_tags_do_not_grow_with_the_number_of_shards(count: int) -> None:
    inputs = {f"shard-{number:04}": f"{number:016x}" for number in range(count)}
    tags = request_tags(MANIFEST, inputs, "2031-01-01T00:00:00+00:00")
    assert max(len(name) + len(value) for name, value in tags.items()) < 128


def test_long_names_and_versions_make_short_tags() -> None:
    tags = request_tags(MANIFEST, {LONG: "v" * 3000, f"{LONG}2": "v" * 4000}, "2031-01-01T00:00:00+00:00")
    assert len(tags) == 2
    assert max(len(name) + len(value) for name, value in tags.items()) < MAX_INDEXED_BYTES
    assert requested_shards(tags, [LONG, f"{LONG}2", f"{LONG}3"]) == [LONG, f"{LONG}2"]


def test_dagster_accepts_the_tags_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dg.RunRequest(tags=request_tags(CAPTIONS, {"a.b-c_d": "1", LONG: "2"}, "t"))


def test_scheduled_runs_name_the_shards_they_are_requested_for() -> None:
    assert requested_shards({"dagster/partition": "a"}, ["a"]) is None
    assert requested_shards(request_tags(MANIFEST, {"b": "1", "d": "1"}, "t"), ["a", "b", "c", "d"]) == ["b", "d"]


def test_requests_are_counted_by_asset_shard_and_input(instance: dg.DagsterInstance) -> None:
    launch(instance, request_tags(MANIFEST, {"a": "1", "b": "1"}, "tick-1"))
    launch(instance, request_tags(MANIFEST, {"a": "1", "b": "2"}, "tick-2"))
    launch(instance, request_tags(CAPTIONS, {"a": "1"}, "tick-3"))
    assert count_requests(instance, MANIFEST, {"a": "1", "b": "2", "c": "1"}) == {"a": 2, "b": 1}
    assert count_requests(instance, CAPTIONS, {"a": "1"}) == {"a": 1}


def test_retries_do_not_count_as_requests(instance: dg.DagsterInstance) -> None:
    tags = request_tags(MANIFEST, {"a": "1"}, "tick-1")
    launch(instance, tags)
    launch(instance, {**tags, "dagster/retry_number": "1"})
    assert count_requests(instance, MANIFEST, {"a": "1"}) == {"a": 1}


def test_requests_for_many_shards_are_counted(instance: dg.DagsterInstance) -> None:
    inputs = {f"shard-{number:04}": "1" for number in range(1200)}
    launch(instance, request_tags(MANIFEST, inputs, "tick-1"))
    assert count_requests(instance, MANIFEST, inputs) == dict.fromkeys(inputs, 1)


SHARDS = dg.DynamicPartitionsDefinition(name="shards")


@dg.asset(partitions_def=SHARDS, output_required=False, config_schema={"failing": [str]})
def captions(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
    """Logs the materialization of each requested shard, as the project's assets do."""
    failing = context.op_execution_context.op_config["failing"]
    for shard in shards_to_process(context):
        if shard not in failing:
            context.log_event(dg.AssetMaterialization(context.asset_key, partition=shard))
    yield from ()
    if failing:
        raise dg.Failure


def run_range(instance: dg.DagsterInstance, first: str, last: str, requested: str, failing: str = "") -> bool:
    """Run the asset over a range; returns whether the run succeeded."""
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    tags |= request_tags(captions.key, dict.fromkeys(requested, "1"), "t")
    config = {"ops": {"captions": {"config": {"failing": list(failing)}}}}
    return dg.materialize([captions], instance=instance, tags=tags, run_config=config, raise_on_error=False).success


def statuses(instance: dg.DagsterInstance, shards: str) -> list[str | None]:
    found = instance.get_status_by_partition(captions.key, list(shards), SHARDS) or {}
    return [status and status.value for status in found.values()]


def test_status_of_shards_that_a_run_leaves_out_is_kept(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("shards", list("abcde"))
    assert run_range(instance, "c", "c", "c")
    assert not run_range(instance, "b", "b", "b", failing="b")
    before = [None, "FAILED", "MATERIALIZED", None, None]
    assert statuses(instance, "abcde") == before
    assert not run_range(instance, "a", "e", "ae", failing="e")
    assert statuses(instance, "abcde") == ["MATERIALIZED", "FAILED", "MATERIALIZED", None, "FAILED"]
    assert run_range(instance, "a", "e", "ae")
    assert statuses(instance, "abcde") == ["MATERIALIZED", "FAILED", "MATERIALIZED", None, "MATERIALIZED"]
    assert run_range(instance, "b", "b", "b")
    assert statuses(instance, "abcde") == ["MATERIALIZED"] * 3 + [None, "MATERIALIZED"]
