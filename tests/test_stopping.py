"""Tests that stop runs with a real engine: by each method, in each phase, and at random moments."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.store.tables import table_path
from tests.models.hub_server import COMMIT, HUB_ID, Fault, HubServer, small_model
from tests.processes import RunningCommand, engine_processes, free_port, is_gone, wait_until
from tests.stages import STAGE1
from tests.stopping import CAPTIONS, CLIPS, FINISHED, SHARD, STOP_SECONDS, DagsterDev, StoppingHarness

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

TRIALS = [0, *(pytest.param(number, marks=pytest.mark.nightly) for number in range(1, 20))]
"""Trials that stop a run at a random moment."""
RUN_SECONDS = 24.0
"""Range of the random moments: imports, the engine's start and some of the captions."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoppingHarness]:
    """A harness with a long shard that keeps its captions between tests."""
    harness = StoppingHarness(tmp_path_factory.mktemp("stopping"))
    harness.prepare()
    yield harness
    for command in harness.commands:
        command.kill()


@pytest.fixture
def harness(prepared: StoppingHarness) -> StoppingHarness:
    """The long shard without captions."""
    prepared.delete_captions()
    return prepared


@pytest.fixture
def short(tmp_path: Path) -> Iterator[StoppingHarness]:
    """A harness with a shard of six clips, which is published soon."""
    harness = StoppingHarness(tmp_path)
    harness.prepare(clips=6)
    yield harness
    for command in harness.commands:
        command.kill()


@pytest.fixture(scope="module")
def dagster_dev(prepared: StoppingHarness) -> Iterator[DagsterDev]:
    with prepared.serve(free_port()) as server:
        yield server


def send(number: signal.Signals) -> Callable[[RunningCommand], None]:
    return lambda command: command.process.send_signal(number)


def press_ctrl_c(command: RunningCommand) -> None:
    """Send SIGINT to the process group, as a terminal does."""
    os.killpg(command.process.pid, signal.SIGINT)


def terminate_group(command: RunningCommand) -> None:
    """Send SIGTERM to the process group, as systemd does."""
    os.killpg(command.process.pid, signal.SIGTERM)


STOP_METHODS = {
    "SIGINT": send(signal.SIGINT),
    "SIGTERM": send(signal.SIGTERM),
    "Ctrl-C": press_ctrl_c,
    "group": terminate_group,
}


def step_started(harness: StoppingHarness, log: str) -> bool:
    return "STEP_START" in log or "Started execution of step" in log


def starting_engine(harness: StoppingHarness, log: str) -> bool:
    return "starting the engine for" in log


def captioning(harness: StoppingHarness, log: str) -> bool:
    return f"of {CLIPS} windows done" in log


def publishing(harness: StoppingHarness, log: str) -> bool:
    return harness.root.exists(table_path(STAGE1.name, SHARD))


def assert_stopped(harness: StoppingHarness, command: RunningCommand, status: int) -> None:
    """The run failed at its first attempt and left no process."""
    assert status != 0, command.output
    assert harness.last_status() is dg.DagsterRunStatus.FAILURE
    assert "STEP_UP_FOR_RETRY" not in command.output
    assert command.output.count("STEP_START") <= 1, command.output
    wait_until(lambda: all(map(is_gone, command.descendants())), 5, "the run's processes exit")


def nightly(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.nightly)


@pytest.mark.parametrize(
    ("phase", "method"),
    [
        (starting_engine, "SIGINT"),
        (captioning, "Ctrl-C"),
        *(nightly(starting_engine, method) for method in ("SIGTERM", "Ctrl-C", "group")),
        *(nightly(captioning, method) for method in ("SIGTERM", "SIGINT", "group")),
    ],
)
def test_stopped_run_stores_its_captions_and_the_next_run_reuses_them(
    harness: StoppingHarness, phase: Callable[[StoppingHarness, str], bool], method: str
) -> None:
    run = harness.materialize(*CAPTIONS)
    wait_until(lambda: phase(harness, run.output), 240, phase.__name__)
    time.sleep(random.uniform(0, 3))  # not longer: a fast machine captions and publishes all windows in 8 s
    run.descendants()

    STOP_METHODS[method](run)

    assert_stopped(harness, run, run.process.wait(STOP_SECONDS))
    assert not harness.is_leased()
    assert f"stopped by SIG{'TERM' if method in ('SIGTERM', 'group') else 'INT'}" in run.output
    if phase is captioning:
        before = harness.stored_rows()
        assert before, run.output
        again = harness.materialize(*CAPTIONS)
        again.wait_for_output(f"of {CLIPS} windows done")
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(STOP_SECONDS) != 0
        assert harness.stored_rows() > before


@pytest.mark.parametrize(
    ("executor", "method"),
    [("in_process", "SIGINT"), ("in_process", "SIGTERM"), ("multiprocess", "Ctrl-C"), ("multiprocess", "SIGTERM")],
)
def test_manifest_run_stops(harness: StoppingHarness, executor: str, method: str) -> None:
    run = harness.materialize("clip_manifest", CAPTION_EXECUTOR=executor)
    wait_until(lambda: step_started(harness, run.output), 240, "the step starts")
    time.sleep(random.uniform(0, 0.5))  # not longer: the step takes little more than a second
    run.descendants()
    STOP_METHODS[method](run)
    assert_stopped(harness, run, run.process.wait(STOP_SECONDS))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A hub that sends the start of each file and then stalls."""
    with HubServer(small_model()).running() as hub:
        for name in hub.files:
            hub.faults[name] = [Fault(stall=1000)] * 9
        yield hub


def settings_for(hub: HubServer) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "CAPTION_MODEL": HUB_ID, "CAPTION_MODEL_REVISION": COMMIT}


def wait_for_download(hub: HubServer) -> None:
    wait_until(lambda: any(map(hub.reads, hub.files)), 240, "the download starts")
    time.sleep(1)


@pytest.mark.parametrize("method", ["SIGINT", "SIGTERM"])
def test_weights_run_with_a_stalled_download_stops(harness: StoppingHarness, hub: HubServer, method: str) -> None:
    run = harness.materialize("model_weights", partition=None, **settings_for(hub))
    wait_for_download(hub)
    run.descendants()
    STOP_METHODS[method](run)
    assert_stopped(harness, run, run.process.wait(STOP_SECONDS))


def test_weights_run_with_a_stalled_download_is_canceled_in_the_ui(harness: StoppingHarness, hub: HubServer) -> None:
    with harness.serve(free_port(), **settings_for(hub)) as dagster_dev:
        run = dagster_dev.launch("model_weights", partition=None)
        wait_for_download(hub)
        dagster_dev.terminate(run)
        assert_canceled(harness, dagster_dev, run)


@pytest.mark.parametrize("method", ["SIGINT", "SIGTERM", "Ctrl-C"])
def test_weights_run_with_a_stalled_download_stops_with_dagster_dev(
    harness: StoppingHarness, hub: HubServer, method: str
) -> None:
    with harness.serve(free_port(), **settings_for(hub)) as dagster_dev:
        dagster_dev.launch("model_weights", partition=None)
        wait_for_download(hub)
        dagster_dev.command.descendants()
        STOP_METHODS[method](dagster_dev.command)
        dagster_dev.command.process.wait(90)
        wait_until(lambda: all(map(is_gone, dagster_dev.command.descendants())), STOP_SECONDS, "all processes exit")
    assert harness.last_status() is dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize("method", ["SIGINT", nightly("SIGTERM")])
def test_captions_of_a_run_stopped_during_publication_are_reused(short: StoppingHarness, method: str) -> None:
    run = short.materialize(*CAPTIONS)
    wait_until(lambda: publishing(short, run.output), 600, "the first table is published")
    run.descendants()
    STOP_METHODS[method](run)
    assert_stopped(short, run, run.process.wait(STOP_SECONDS))
    assert not short.is_leased()
    again = short.materialize(*CAPTIONS)
    assert again.process.wait(240) == 0, again.output
    assert "starting the engine" not in again.output


def test_second_signal_stops_a_run_immediately(harness: StoppingHarness) -> None:
    run = harness.materialize(*CAPTIONS)
    run.wait_for_output(f"of {CLIPS} windows done")
    run.descendants()
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    run.process.send_signal(signal.SIGINT)
    assert_stopped(harness, run, run.process.wait(6))


@pytest.mark.parametrize("phase", [starting_engine, captioning])
def test_run_terminated_in_the_ui_is_canceled(
    harness: StoppingHarness, dagster_dev: DagsterDev, phase: Callable[[StoppingHarness, str], bool]
) -> None:
    run = dagster_dev.launch(*CAPTIONS)
    wait_until(lambda: phase(harness, dagster_dev.messages(run)), 240, phase.__name__)
    dagster_dev.terminate(run)
    assert_canceled(harness, dagster_dev, run)
    assert bool(harness.stored_rows()) == (phase is captioning)


def assert_canceled(harness: StoppingHarness, dagster_dev: DagsterDev, run: str) -> None:
    """The run was canceled in time at its first attempt, and left no engine and no lease."""
    engines = engine_processes(dagster_dev.command.process.pid)
    wait_until(lambda: dagster_dev.status(run) in FINISHED, STOP_SECONDS, "the run ends")
    assert dagster_dev.status(run) == "CANCELED", dagster_dev.messages(run)
    types = [event["__typename"] for event in dagster_dev.events(run)]
    assert types.count("ExecutionStepStartEvent") <= 1
    assert "ExecutionStepUpForRetryEvent" not in types
    wait_until(lambda: all(map(is_gone, engines)), 10, "the engine exits")
    assert not harness.is_leased()


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["SIGINT", "SIGTERM", "Ctrl-C"])
def test_run_fails_when_dagster_dev_stops(harness: StoppingHarness, method: str) -> None:
    with harness.serve(free_port()) as dagster_dev:
        run = dagster_dev.launch(*CAPTIONS)
        wait_until(lambda: captioning(harness, dagster_dev.messages(run)), 240, "the first captions are done")
        dagster_dev.command.descendants()
        STOP_METHODS[method](dagster_dev.command)
        dagster_dev.command.process.wait(90)
        wait_until(lambda: all(map(is_gone, dagster_dev.command.descendants())), STOP_SECONDS, "all processes exit")
    assert harness.stored_rows()
    assert not harness.is_leased()
    with harness.serve(free_port()) as dagster_dev:
        assert dagster_dev.status(run) == "FAILURE"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_step_pod_requests_a_retry_in_another_pod(
    harness: StoppingHarness, hub: HubServer, number: signal.Signals
) -> None:
    """The step's process runs without a cluster."""
    step = harness.start_step("model_weights", CAPTION_EXECUTOR="k8s", **settings_for(hub))
    wait_for_download(hub)
    step.process.send_signal(number)
    step.process.wait(STOP_SECONDS)
    events = harness.events_of_lost_run()
    assert events.count(dg.DagsterEventType.STEP_START) == 1, step.output
    assert events.count(dg.DagsterEventType.STEP_UP_FOR_RETRY) == 1, step.output
    assert dg.DagsterEventType.STEP_RESTARTED not in events


def stop_at_random(harness: StoppingHarness, method: str, moment: Moment) -> str:
    """Stop a command-line run at a moment and summarize it in a line.

    A run that has already finished is replaced by another one, which is stopped after half the time.
    """
    before = harness.stored_rows()
    run = harness.materialize(*CAPTIONS)
    wait_until(lambda: run.process.poll() is not None or moment.phase(harness, run.output), 240, "the phase starts")
    time.sleep(moment.seconds)
    run.descendants()
    if run.process.poll() == 0:
        harness.delete_captions()
        return stop_at_random(harness, method, moment.earlier())
    start = time.monotonic()
    STOP_METHODS[method](run)
    status = run.process.wait(STOP_SECONDS)
    elapsed = time.monotonic() - start
    assert_stopped(harness, run, status)
    assert not harness.is_leased()
    assert harness.stored_rows() >= before
    return f"{method} {moment}: exit status {status} in {elapsed:.1f} s, {len(harness.stored_rows())} rows stored"


def terminate_at_random(harness: StoppingHarness, dagster_dev: DagsterDev, moment: Moment) -> str:
    """Like ``stop_at_random``, but terminate the run in the UI."""
    before = harness.stored_rows()
    run = dagster_dev.launch(*CAPTIONS)
    wait_until(
        lambda: dagster_dev.status(run) in FINISHED or moment.phase(harness, dagster_dev.messages(run)),
        240,
        "the phase starts",
    )
    time.sleep(moment.seconds)
    if dagster_dev.status(run) == "SUCCESS":
        harness.delete_captions()
        return terminate_at_random(harness, dagster_dev, moment.earlier())
    start = time.monotonic()
    dagster_dev.terminate(run)
    assert_canceled(harness, dagster_dev, run)
    elapsed = time.monotonic() - start
    assert harness.stored_rows() >= before
    return f"Terminate {moment}: CANCELED in {elapsed:.1f} s, {len(harness.stored_rows())} rows stored"


@dataclass(frozen=True)
class Moment:
    """A time after the start of a run's phase."""

    phase: Callable[[StoppingHarness, str], bool]
    seconds: float

    @classmethod
    def at_random(cls, trial: int) -> Moment:
        """Odd trials stop the run during captioning, even ones at any time after the step's start."""
        return cls(captioning, random.uniform(0, 5)) if trial % 2 else cls(step_started, random.uniform(0, RUN_SECONDS))

    def earlier(self) -> Moment:
        return Moment(self.phase, self.seconds / 2)

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s after {self.phase.__name__}"


@pytest.mark.parametrize("trial", TRIALS)
def test_signal_at_a_random_moment_stops_a_run(prepared: StoppingHarness, trial: int) -> None:
    delete_captions_if_half_done(prepared)
    print(stop_at_random(prepared, random.choice(list(STOP_METHODS)), Moment.at_random(trial)))


@pytest.mark.parametrize("trial", TRIALS)
def test_run_terminated_at_a_random_moment_is_canceled(
    prepared: StoppingHarness, dagster_dev: DagsterDev, trial: int
) -> None:
    delete_captions_if_half_done(prepared)
    print(terminate_at_random(prepared, dagster_dev, Moment.at_random(trial)))


def delete_captions_if_half_done(harness: StoppingHarness) -> None:
    if len(harness.stored_rows()) > CLIPS:  # each clip has two rows
        harness.delete_captions()
