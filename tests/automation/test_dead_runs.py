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
from tests.automation.monitor import Monitor

pytestmark = pytest.mark.fast

Status = dg.DagsterRunStatus


@pytest.fixture
def monitor(tmp_path: Path, instance: dg.DagsterInstance) -> Monitor:
    return Monitor(tmp_path / "root", instance)


EXPIRED = b'{"process": "gpu-7, process 4711", "seconds": 120}'


def test_run_with_an_expired_heartbeat_fails_with_the_reason(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED, heartbeat=EXPIRED, **{"dagster/partition": "a"})
    monitor.instance.add_dynamic_partitions("shards", ["a"])
    assert active_shards(monitor.instance, Project()) == {"a"}
    monitor.tick_for(EXPIRY_FACTOR * 120 - INTERVAL_SECONDS)
    assert monitor.status(run) is Status.STARTED
    monitor.tick()
    assert monitor.status(run) is Status.FAILURE
    message = monitor.message(run, dg.DagsterEventType.RUN_FAILURE)
    assert "The process of this run (gpu-7, process 4711) no longer renews its heartbeat" in message
    found = re.search(r"interval is 40 s, and the last renewal was (\d+) s ago", message)
    assert found, message
    assert int(found[1]) >= 180  # the ticks, and the duration of the test
    assert active_shards(monitor.instance, Project()) == frozenset()
    assert list_heartbeats(monitor.root) == {}


def test_canceling_run_with_an_expired_heartbeat_is_canceled(monitor: Monitor) -> None:
    run = monitor.run(Status.CANCELING, heartbeat=EXPIRED)
    monitor.tick_for(200)
    assert monitor.status(run) is Status.CANCELED


def test_run_that_renews_its_heartbeat_stays_active(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED)
    for beat in range(100):
        monitor.root.write(f"{FOLDER}/{run}", EXPIRED + b" " * beat)
        monitor.tick(100)
    assert monitor.status(run) is Status.STARTED


def test_real_heartbeat_keeps_its_run_active(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED)
    never, nothing = (lambda: False), (lambda: None)
    with Heartbeat(lambda: monitor.root, run, 0.3, has_ended=never, interrupt=nothing, on_error=print):
        for _ in range(10):
            before = list_heartbeats(monitor.root)
            monitor.tick(1000)
            while list_heartbeats(monitor.root) == before:
                pass
    assert monitor.status(run) is Status.STARTED


@pytest.mark.parametrize("status", [Status.NOT_STARTED, Status.SUCCESS, Status.CANCELED])
def test_inactive_runs_are_not_ended(monitor: Monitor, status: dg.DagsterRunStatus) -> None:
    run, other = monitor.run(status, heartbeat=EXPIRED), monitor.run(Status.STARTED, heartbeat=EXPIRED)
    monitor.tick_for(300)
    assert monitor.status(run) is status
    assert monitor.status(other) is Status.FAILURE


def test_run_without_a_heartbeat_is_not_ended(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED)
    monitor.tick_for(2_000)
    assert monitor.status(run) is Status.STARTED


def test_heartbeats_of_another_instance_are_kept(monitor: Monitor) -> None:
    monitor.root.write(f"{FOLDER}/elsewhere", EXPIRED)
    run = monitor.run(Status.STARTED, heartbeat=EXPIRED)
    monitor.tick_for(300)
    assert monitor.status(run) is Status.FAILURE
    assert list_heartbeats(monitor.root).keys() == {"elsewhere"}


def test_heartbeat_of_a_finished_run_is_removed(monitor: Monitor) -> None:
    monitor.run(Status.FAILURE, heartbeat=EXPIRED)
    monitor.run(Status.STARTED)
    monitor.tick()
    assert list_heartbeats(monitor.root) == {}


def test_store_outage_or_suspended_machine_ends_no_run(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED, heartbeat=EXPIRED)
    monitor.tick()
    monitor.tick(40)
    monitor.tick(3600)
    assert monitor.status(run) is Status.STARTED
    monitor.root.write(f"{FOLDER}/{run}", EXPIRED + b" ")
    monitor.tick_for(60)
    assert monitor.status(run) is Status.STARTED


def test_clock_of_the_runs_machine_does_not_matter(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED)
    for day in range(20):  # a clock that runs backwards, years behind
        monitor.root.write(f"{FOLDER}/{run}", EXPIRED)
        os.utime(monitor.root.full(f"{FOLDER}/{run}"), (10**9 - 86_400 * day,) * 2)
        monitor.tick(100)
    assert monitor.status(run) is Status.STARTED


def test_heartbeat_sets_its_own_expiry_time(monitor: Monitor) -> None:
    long = monitor.run(Status.STARTED, heartbeat=b'{"process": "p", "seconds": 600}')
    damaged = monitor.run(Status.STARTED, heartbeat=b"")
    monitor.tick_for(300)
    assert monitor.status(long) is Status.STARTED
    assert monitor.status(damaged) is Status.FAILURE
    monitor.tick_for(900)
    assert monitor.status(long) is Status.FAILURE


def test_pool_slots_of_a_dead_run_are_freed(monitor: Monitor) -> None:
    log = monitor.instance.event_log_storage
    run = monitor.run(Status.STARTED, heartbeat=EXPIRED)
    log.set_concurrency_slots("gpu", 1)
    assert log.claim_concurrency_slot("gpu", run, "captions").is_claimed
    monitor.tick_for(200)
    assert log.claim_concurrency_slot("gpu", "another", "captions").is_claimed


def test_tick_without_active_runs_does_not_read_the_store(monitor: Monitor) -> None:
    monitor.tick()
    with dg.build_sensor_context(monitor.instance) as context:
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
