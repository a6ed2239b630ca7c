"""Real runs with a real engine that are stopped: at each door, in each phase, and at random moments."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.captioning.stages import STAGE1
from caption_assets.store.tables import table_path
from tests.models.hub_server import COMMIT, HUB_ID, Fault, HubServer, small_model
from tests.processes import engine_processes, is_gone
from tests.stopping import CAPTIONS, CLIPS, OVER, SHARD, STOP_SECONDS, Command, Project, Site, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

TRIALS = [0, *(pytest.param(number, marks=pytest.mark.nightly) for number in range(1, 20))]
"""Signals at random moments, at each of the doors."""
RUN_SECONDS = 24.0
"""Within which the random moments lie: import, engine's start, and some of the captions."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("stopping"))
    project.prepare()
    yield project
    for command in project.commands:
        command.kill()


@pytest.fixture
def project(prepared: Project) -> Project:
    prepared.forget()
    return prepared


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Project]:
    """One with few clips, which are soon whole."""
    project = Project(tmp_path)
    project.prepare(clips=6)
    yield project
    for command in project.commands:
        command.kill()


@pytest.fixture(scope="module")
def site(prepared: Project) -> Iterator[Site]:
    with prepared.serve(free_port()) as site:
        yield site


def send(number: signal.Signals) -> Callable[[Command], None]:
    return lambda command: command.process.send_signal(number)


def press_ctrl_c(command: Command) -> None:
    """A terminal signals all processes of the group."""
    os.killpg(command.process.pid, signal.SIGINT)


def end_group(command: Command) -> None:
    """What a supervisor does that knows no processes of its own: systemd, say."""
    os.killpg(command.process.pid, signal.SIGTERM)


DOORS = {"SIGINT": send(signal.SIGINT), "SIGTERM": send(signal.SIGTERM), "Ctrl-C": press_ctrl_c, "group": end_group}


def has_begun(project: Project, log: str) -> bool:
    return "STEP_START" in log or "Started execution of step" in log


def building(project: Project, log: str) -> bool:
    return "starting the engine for" in log


def captioning(project: Project, log: str) -> bool:
    return f"of {CLIPS} windows done" in log


def publishing(project: Project, log: str) -> bool:
    return project.root.exists(table_path(STAGE1.name, SHARD))


def assert_stopped(project: Project, command: Command, status: int) -> None:
    """The run has failed, at the first attempt, and nothing of it runs."""
    assert status != 0, command.output
    assert project.last_run() is dg.DagsterRunStatus.FAILURE
    assert "STEP_UP_FOR_RETRY" not in command.output
    assert command.output.count("STEP_START") <= 1, command.output
    wait_until(lambda: all(map(is_gone, command.seen)), 5, "no process of the run is left")


def nightly(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.nightly)


@pytest.mark.parametrize(
    ("phase", "door"),
    [
        (building, "SIGINT"),
        (captioning, "Ctrl-C"),
        *(nightly(building, door) for door in ("SIGTERM", "Ctrl-C", "group")),
        *(nightly(captioning, door) for door in ("SIGTERM", "SIGINT", "group")),
    ],
)
def test_a_run_on_the_command_line_stops_and_the_next_takes_its_captions_over(
    project: Project, phase: Callable[[Project, str], bool], door: str
) -> None:
    run = project.materialize(*CAPTIONS)
    wait_until(lambda: phase(project, run.output), 240, phase.__name__)
    time.sleep(random.uniform(0, 3))  # a fast machine captions all windows in 8 s, and publishes them
    run.look()

    DOORS[door](run)

    assert_stopped(project, run, run.process.wait(STOP_SECONDS))
    assert not project.is_leased()
    assert f"stopped by SIG{'TERM' if door in ('SIGTERM', 'group') else 'INT'}" in run.output
    if phase is captioning:
        kept = project.kept()
        assert kept, run.output
        again = project.materialize(*CAPTIONS)
        again.wait_for(f"of {CLIPS} windows done")
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(STOP_SECONDS) != 0
        assert project.kept() > kept


@pytest.mark.parametrize(
    ("executor", "door"),
    [("in_process", "SIGINT"), ("in_process", "SIGTERM"), ("multiprocess", "Ctrl-C"), ("multiprocess", "SIGTERM")],
)
def test_clips_being_probed_stop(project: Project, executor: str, door: str) -> None:
    run = project.materialize("clip_manifest", CAPTION_EXECUTOR=executor)
    wait_until(lambda: has_begun(project, run.output), 240, "the step begins")
    time.sleep(random.uniform(0, 2))
    run.look()
    DOORS[door](run)
    assert_stopped(project, run, run.process.wait(STOP_SECONDS))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """One that sends the beginning of each file, and then nothing."""
    with HubServer(small_model()).running() as hub:
        for name in hub.files:
            hub.faults[name] = [Fault(stall=1000)] * 9
        yield hub


def settings_for(hub: HubServer) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "CAPTION_MODEL": HUB_ID, "CAPTION_MODEL_REVISION": COMMIT}


def wait_for_download(hub: HubServer) -> None:
    wait_until(lambda: any(map(hub.reads, hub.files)), 240, "the download begins")
    time.sleep(1)


@pytest.mark.parametrize("door", ["SIGINT", "SIGTERM"])
def test_weights_whose_download_hangs_stop(project: Project, hub: HubServer, door: str) -> None:
    run = project.materialize("model_weights", partition=None, **settings_for(hub))
    wait_for_download(hub)
    run.look()
    DOORS[door](run)
    assert_stopped(project, run, run.process.wait(STOP_SECONDS))


def test_weights_whose_download_hangs_are_canceled_in_the_ui(project: Project, hub: HubServer) -> None:
    with project.serve(free_port(), **settings_for(hub)) as site:
        run = site.launch("model_weights", partition=None)
        wait_for_download(hub)
        site.terminate(run)
        assert_canceled(project, site, run)


@pytest.mark.parametrize("door", ["SIGINT", "SIGTERM", "Ctrl-C"])
def test_weights_whose_download_hangs_stop_with_dagster_dev(project: Project, hub: HubServer, door: str) -> None:
    with project.serve(free_port(), **settings_for(hub)) as site:
        site.launch("model_weights", partition=None)
        wait_for_download(hub)
        site.command.look()
        DOORS[door](site.command)
        site.command.process.wait(90)
        wait_until(lambda: all(map(is_gone, site.command.seen)), STOP_SECONDS, "no process is left")
    assert project.last_run() is dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize("door", ["SIGINT", nightly("SIGTERM")])
def test_a_shard_being_published_stops_and_the_next_run_makes_nothing_again(published: Project, door: str) -> None:
    project = published
    run = project.materialize(*CAPTIONS)
    wait_until(lambda: publishing(project, run.output), 600, "the first table is there")
    run.look()
    DOORS[door](run)
    assert_stopped(project, run, run.process.wait(STOP_SECONDS))
    assert not project.is_leased()
    again = project.materialize(*CAPTIONS)
    assert again.process.wait(240) == 0, again.output
    assert "starting the engine" not in again.output


def test_a_second_signal_ends_a_run_at_once(project: Project) -> None:
    run = project.materialize(*CAPTIONS)
    run.wait_for(f"of {CLIPS} windows done")
    run.look()
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    run.process.send_signal(signal.SIGINT)
    assert_stopped(project, run, run.process.wait(6))


@pytest.mark.parametrize("phase", [building, captioning])
def test_a_run_that_is_terminated_in_the_ui_is_canceled(
    project: Project, site: Site, phase: Callable[[Project, str], bool]
) -> None:
    run = site.launch(*CAPTIONS)
    wait_until(lambda: phase(project, site.log(run)), 240, phase.__name__)
    site.terminate(run)
    assert_canceled(project, site, run)
    assert bool(project.kept()) == (phase is captioning)


def assert_canceled(project: Project, site: Site, run: str) -> None:
    """The run is CANCELED in time, at its first attempt, and nothing of it runs."""
    engines = engine_processes(site.command.process.pid)
    wait_until(lambda: site.status(run) in OVER, STOP_SECONDS, "the run ends")
    assert site.status(run) == "CANCELED", site.log(run)
    types = [event["__typename"] for event in site.events(run)]
    assert types.count("ExecutionStepStartEvent") <= 1
    assert "ExecutionStepUpForRetryEvent" not in types
    wait_until(lambda: all(map(is_gone, engines)), 10, "the engine is gone")
    assert not project.is_leased()


@pytest.mark.nightly
@pytest.mark.parametrize("door", ["SIGINT", "SIGTERM", "Ctrl-C"])
def test_a_run_fails_when_dagster_dev_is_stopped(project: Project, door: str) -> None:
    with project.serve(free_port()) as site:
        run = site.launch(*CAPTIONS)
        wait_until(lambda: captioning(project, site.log(run)), 240, "captions are made")
        site.command.look()
        DOORS[door](site.command)
        site.command.process.wait(90)
        wait_until(lambda: all(map(is_gone, site.command.seen)), STOP_SECONDS, "no process is left")
    assert project.kept()
    assert not project.is_leased()
    with project.serve(free_port()) as site:
        assert site.status(run) == "FAILURE"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_steps_own_pod_that_is_told_to_stop_asks_for_another_and_makes_no_attempt_itself(
    project: Project, hub: HubServer, number: signal.Signals
) -> None:
    """The process that dagster-k8s starts in a step's pod, without a cluster."""
    step = project.start_step("model_weights", CAPTION_EXECUTOR="k8s", **settings_for(hub))
    wait_for_download(hub)
    step.process.send_signal(number)
    step.process.wait(STOP_SECONDS)
    events = project.events_of_abandoned_run()
    assert events.count(dg.DagsterEventType.STEP_START) == 1, step.output
    assert events.count(dg.DagsterEventType.STEP_UP_FOR_RETRY) == 1, step.output
    assert dg.DagsterEventType.STEP_RESTARTED not in events


def stop_at_random(project: Project, door: str, moment: Moment) -> str:
    """A run on the command line that is signaled at a moment; returns how it went, in a line.

    One that ends before is none: another is signaled after half the time.
    """
    kept = project.kept()
    run = project.materialize(*CAPTIONS)
    wait_until(lambda: run.process.poll() is not None or moment.phase(project, run.output), 240, "the run begins")
    time.sleep(moment.seconds)
    run.look()
    if run.process.poll() == 0:
        project.forget()
        return stop_at_random(project, door, moment.earlier())
    begun = time.monotonic()
    DOORS[door](run)
    status = run.process.wait(STOP_SECONDS)
    took = time.monotonic() - begun
    assert_stopped(project, run, status)
    assert not project.is_leased()
    assert project.kept() >= kept
    return f"{door} {moment}: exit status {status} in {took:.1f} s, {len(project.kept())} rows kept"


def terminate_at_random(project: Project, site: Site, moment: Moment) -> str:
    """Like ``stop_at_random``, for a run that is terminated in the UI."""
    kept = project.kept()
    run = site.launch(*CAPTIONS)
    wait_until(lambda: site.status(run) in OVER or moment.phase(project, site.log(run)), 240, "the run begins")
    time.sleep(moment.seconds)
    if site.status(run) == "SUCCESS":
        project.forget()
        return terminate_at_random(project, site, moment.earlier())
    begun = time.monotonic()
    site.terminate(run)
    assert_canceled(project, site, run)
    took = time.monotonic() - begun
    assert project.kept() >= kept
    return f"Terminate {moment}: CANCELED in {took:.1f} s, {len(project.kept())} rows kept"


@dataclass(frozen=True)
class Moment:
    """A time after a run has come to a phase."""

    phase: Callable[[Project, str], bool]
    seconds: float

    @classmethod
    def at_random(cls, trial: int) -> Moment:
        """By turns from the run's begin on and among its captions."""
        return cls(captioning, random.uniform(0, 5)) if trial % 2 else cls(has_begun, random.uniform(0, RUN_SECONDS))

    def earlier(self) -> Moment:
        return Moment(self.phase, self.seconds / 2)

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s after {self.phase.__name__}"


@pytest.mark.parametrize("trial", TRIALS)
def test_signals_at_random_moments_end_a_run_on_the_command_line(prepared: Project, trial: int) -> None:
    forget_if_nearly_whole(prepared)
    print(stop_at_random(prepared, random.choice(list(DOORS)), Moment.at_random(trial)))


@pytest.mark.parametrize("trial", TRIALS)
def test_a_run_is_canceled_when_it_is_terminated_at_a_random_moment(prepared: Project, site: Site, trial: int) -> None:
    forget_if_nearly_whole(prepared)
    print(terminate_at_random(prepared, site, Moment.at_random(trial)))


def forget_if_nearly_whole(project: Project) -> None:
    if len(project.kept()) > CLIPS:  # of twice as many rows
        project.forget()
