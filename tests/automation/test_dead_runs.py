from __future__ import annotations

import os
import re
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.automation.dead_runs import EXPIRY_FACTOR, INTERVAL_SECONDS, HeartbeatAge, build_dead_runs
from caption_assets.automation.shard_states import active_shards
from caption_assets.dagster_lib.project import Project
from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.store.heartbeat import FOLDER, Heartbeat, list_heartbeats
from tests.automation.dead_runs_harness import DeadRunsHarness

pytestmark = pytest.mark.fast

Status = dg.DagsterRunStatus


@pytest.fixture
def harness(tmp_path: Path, instance: dg.DagsterInstance) -> DeadRunsHarness:
    return DeadRunsHarness(tmp_path / "root", instance)


EXPIRED = b'{"process": "gpu-7, process 4711", "seconds": 120}'


def test_run_with_an_expired_heartbeat_fails_with_the_reason(harness: DeadRunsHarness) -> None:
    run = harness.run(Status.STARTED, heartbeat=EXPIRED, **{"dagster/partition": "a"})
    harness.instance.add_dynamic_partitions("shards", ["a"])
    assert active_shards(harness.instance, Project()) == {"a"}
    harness.tick_for(EXPIRY_FACTOR * 120 - INTERVAL_SECONDS)
    assert harness.status(run) is Status.STARTED
    harness.tick()
    assert harness.status(run) is Status.FAILURE
    message = harness.message(run, dg.DagsterEventType.RUN_FAILURE)
    assert "The process of this run (gpu-7, process 4711) no longer renews its heartbeat" in message
    found = re.search(r"interval is 40 s, and the last renewal was (\d+) s ago", message)
    assert found, message
    assert int(found[1]) >= 180  # the ticks, and the duration of the test
    assert active_shards(harness.instance, Project()) == frozenset()
    assert list_heartbeats(harness.root) == {}


def test_canceling_run_with_an_expired_heartbeat_is_canceled(harness: DeadRunsHarness) -> None:
    run = harness.run(Status.CANCELING, heartbeat=EXPIRED)
    harness.tick_for(200)
    assert harness.status(run) is Status.CANCELED


def test_run_that_renews_its_heartbeat_stays_active(harness: DeadRunsHarness) -> None:
    run = harness.run(Status.STARTED)
    for beat in range(100):
        harness.root.write(f"{FOLDER}/{run}", EXPIRED + b" " * beat)
        harness.tick(100)
    assert harness.status(run) is Status.STARTED


def test_real_heartbeat_keeps_its_run_active(harness: DeadRunsHarness) -> None:
    run = harness.run(Status.STARTED)
    with Heartbeat(lambda: harness.root, run, 0.3, has_ended=lambda: False, interrupt=lambda: None, on_error=print):
        for _ in range(10):
            before = list_heartbeats(harness.root)
            harness.tick(1000)
            while list_heartbeats(harness.root) == before:
                pass
    assert harness.status(run) is Status.STARTED


@pytest.mark.parametrize("status", [Status.NOT_STARTED, Status.SUCCESS, Status.CANCELED])
def test_inactive_runs_are_not_ended(harness: DeadRunsHarness, status: dg.DagsterRunStatus) -> None:
    run, other = harness.run(status, heartbeat=EXPIRED), harness.run(Status.STARTED, heartbeat=EXPIRED)
    harness.tick_for(300)
    assert harness.status(run) is status
    assert harness.status(other) is Status.FAILURE


def test_run_without_a_heartbeat_is_not_ended(harness: DeadRunsHarness) -> None:
    run = harness.run(Status.STARTED)
    harness.tick_for(2_000)
    assert harness.status(run) is Status.STARTED


def test_heartbeats_of_another_instance_are_kept(harness: DeadRunsHarness) -> None:
    harness.root.write(f"{FOLDER}/elsewhere", EXPIRED)
    run = harness.run(Status.STARTED, heartbeat=EXPIRED)
    harness.tick_for(300)
    assert harness.status(run) is Status.FAILURE
    assert list_heartbeats(harness.root).keys() == {"elsewhere"}


def test_heartbeat_of_a_finished_run_is_removed(harness: DeadRunsHarness) -> None:
    harness.run(Status.FAILURE, heartbeat=EXPIRED)
    harness.run(Status.STARTED)
    harness.tick()
    assert list_heartbeats(harness.root) == {}


def test_store_outage_or_suspended_machine_ends_no_run(harness: DeadRunsHarness) -> None:
    run = harness.run(Status.STARTED, heartbeat=EXPIRED)
    harness.tick()
    harness.tick(40)
    harness.tick(3600)
    assert harness.status(run) is Status.STARTED
    harness.root.write(f"{FOLDER}/{run}", EXPIRED + b" ")
    harness.tick_for(60)
    assert harness.status(run) is Status.STARTED


def test_clock_of_the_runs_machine_is_ignored(harness: DeadRunsHarness) -> None:
    run = harness.run(Status.STARTED)
    for day in range(20):  # the clock runs backwards, years behind
        harness.root.write(f"{FOLDER}/{run}", EXPIRED)
        os.utime(harness.root.full(f"{FOLDER}/{run}"), (10**9 - 86_400 * day,) * 2)
        harness.tick(100)
    assert harness.status(run) is Status.STARTED


def test_heartbeat_sets_its_own_expiry_time(harness: DeadRunsHarness) -> None:
    long = harness.run(Status.STARTED, heartbeat=b'{"process": "p", "seconds": 600}')
    damaged = harness.run(Status.STARTED, heartbeat=b"")
    harness.tick_for(300)
    assert harness.status(long) is Status.STARTED
    assert harness.status(damaged) is Status.FAILURE
    harness.tick_for(900)
    assert harness.status(long) is Status.FAILURE


def test_pool_slots_of_a_dead_run_are_freed(harness: DeadRunsHarness) -> None:
    log = harness.instance.event_log_storage
    run = harness.run(Status.STARTED, heartbeat=EXPIRED)
    log.set_concurrency_slots("gpu", 1)
    assert log.claim_concurrency_slot("gpu", run, "captions").is_claimed
    harness.tick_for(200)
    assert log.claim_concurrency_slot("gpu", "another", "captions").is_claimed


def test_tick_without_active_runs_does_not_read_the_store(harness: DeadRunsHarness) -> None:
    harness.tick()
    with dg.build_sensor_context(harness.instance) as context:
        nowhere = Settings(root="s3://bucket/root")  # a request would fail
        result = build_dead_runs(nowhere)(context, storage=build_storage(nowhere))
    assert isinstance(result, dg.SensorResult)
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message == "no active runs"


@given(st.floats(5, 1000), st.lists(st.floats(-1e9, 1e9), max_size=30))
def test_run_is_dead_after_three_observations_at_the_earliest(expires: float, gaps: list[float]) -> None:
    age = HeartbeatAge("then", "process", expires)
    for number, gap in enumerate(gaps, 1):
        age = age.observe("then", gap)
        assert not age.is_dead or number >= 3
    assert not age.observe("later", 1e9).is_dead
