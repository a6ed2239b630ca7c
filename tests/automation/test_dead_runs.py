from __future__ import annotations

import os
import re
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.automation.dead_runs import LOOK_SECONDS, PATIENCE, Unchanged, build_dead_runs
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


GONE = b'{"process": "gpu-7, process 4711", "seconds": 120}'


def test_a_run_whose_heartbeat_is_not_renewed_fails_and_says_why(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED, heartbeat=GONE, **{"dagster/partition": "a"})
    monitor.instance.add_dynamic_partitions("shards", ["a"])
    assert active_shards(monitor.instance, Project()) == {"a"}
    monitor.watch(PATIENCE * 120 - LOOK_SECONDS)
    assert monitor.status(run) is Status.STARTED
    monitor.look()
    assert monitor.status(run) is Status.FAILURE
    message = monitor.message(run, dg.DagsterEventType.RUN_FAILURE)
    assert "The process of this run is gone (gpu-7, process 4711)" in message
    found = re.search(r"renewed every 40 s, was not for (\d+) s", message)
    assert found, message
    assert int(found[1]) >= 180  # of the looks, and what the test itself took
    assert active_shards(monitor.instance, Project()) == frozenset()
    assert list_heartbeats(monitor.root) == {}


def test_a_run_that_was_being_canceled_is_canceled(monitor: Monitor) -> None:
    run = monitor.run(Status.CANCELING, heartbeat=GONE)
    monitor.watch(200)
    assert monitor.status(run) is Status.CANCELED


def test_a_run_that_renews_its_heartbeat_lives_however_long_it_takes(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED)
    for beat in range(100):
        monitor.root.write(f"{FOLDER}/{run}", GONE + b" " * beat)
        monitor.look(100)
    assert monitor.status(run) is Status.STARTED


def test_a_real_heartbeat_keeps_its_run_alive(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED)
    never, nothing = (lambda: False), (lambda: None)
    with Heartbeat(lambda: monitor.root, run, 0.3, is_over=never, on_over=nothing, on_trouble=print):
        for _ in range(10):
            before = list_heartbeats(monitor.root)
            monitor.look(1000)
            while list_heartbeats(monitor.root) == before:
                pass
    assert monitor.status(run) is Status.STARTED


@pytest.mark.parametrize("status", [Status.NOT_STARTED, Status.SUCCESS, Status.CANCELED])
def test_runs_that_are_not_in_progress_are_left_alone(monitor: Monitor, status: dg.DagsterRunStatus) -> None:
    run, other = monitor.run(status, heartbeat=GONE), monitor.run(Status.STARTED, heartbeat=GONE)
    monitor.watch(300)
    assert monitor.status(run) is status
    assert monitor.status(other) is Status.FAILURE


def test_a_run_that_never_had_a_heartbeat_here_is_somebody_elses(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED)
    monitor.watch(2_000)
    assert monitor.status(run) is Status.STARTED


def test_the_heartbeats_of_another_instance_stay(monitor: Monitor) -> None:
    monitor.root.write(f"{FOLDER}/elsewhere", GONE)
    run = monitor.run(Status.STARTED, heartbeat=GONE)
    monitor.watch(300)
    assert monitor.status(run) is Status.FAILURE
    assert list_heartbeats(monitor.root).keys() == {"elsewhere"}


def test_what_a_killed_run_left_goes_once_the_run_was_ended_by_others(monitor: Monitor) -> None:
    monitor.run(Status.FAILURE, heartbeat=GONE)
    monitor.run(Status.STARTED)
    monitor.look()
    assert list_heartbeats(monitor.root) == {}


def test_time_in_which_the_store_did_not_answer_or_the_machine_slept_is_no_evidence(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED, heartbeat=GONE)
    monitor.look()
    monitor.look(40)
    monitor.look(3600)
    assert monitor.status(run) is Status.STARTED
    monitor.root.write(f"{FOLDER}/{run}", GONE + b" ")
    monitor.watch(60)
    assert monitor.status(run) is Status.STARTED


def test_the_clock_of_the_runs_machine_does_not_matter(monitor: Monitor) -> None:
    run = monitor.run(Status.STARTED)
    for day in range(20):  # one that goes backwards, and lies years behind
        monitor.root.write(f"{FOLDER}/{run}", GONE)
        os.utime(monitor.root.full(f"{FOLDER}/{run}"), (10**9 - 86_400 * day,) * 2)
        monitor.look(100)
    assert monitor.status(run) is Status.STARTED


def test_a_run_decides_itself_how_long_it_may_be_silent(monitor: Monitor) -> None:
    patient = monitor.run(Status.STARTED, heartbeat=b'{"process": "p", "seconds": 600}')
    damaged = monitor.run(Status.STARTED, heartbeat=b"")
    monitor.watch(300)
    assert monitor.status(patient) is Status.STARTED
    assert monitor.status(damaged) is Status.FAILURE
    monitor.watch(900)
    assert monitor.status(patient) is Status.FAILURE


def test_the_slots_of_a_dead_run_are_free_at_once(monitor: Monitor) -> None:
    log = monitor.instance.event_log_storage
    run = monitor.run(Status.STARTED, heartbeat=GONE)
    log.set_concurrency_slots("gpu", 1)
    assert log.claim_concurrency_slot("gpu", run, "captions").is_claimed
    monitor.watch(200)
    assert log.claim_concurrency_slot("gpu", "another", "captions").is_claimed


def test_without_a_run_in_progress_nothing_is_asked_of_the_store(monitor: Monitor) -> None:
    monitor.look()
    with dg.build_sensor_context(monitor.instance) as context:
        nowhere = Settings(root="s3://bucket/root")  # which no request could reach
        result = build_dead_runs(nowhere)(context, storage=build_storage(nowhere))
    assert isinstance(result, dg.SensorResult)
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message == "no run is in progress"


@given(st.floats(5, 1000), st.lists(st.floats(-1e9, 1e9), max_size=30))
def test_no_run_is_dead_before_three_looks_whatever_the_sensors_clock_does(expires: float, gaps: list[float]) -> None:
    seen = Unchanged("then", "process", expires)
    for number, gap in enumerate(gaps, 1):
        seen = seen.look("then", gap)
        assert not seen.is_dead or number >= 3
    assert not seen.look("later", 1e9).is_dead
