from __future__ import annotations

import time
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from caption_assets.dagster_lib.run_heartbeat import EndedExternally

pytestmark = pytest.mark.fast

Status = dg.DagsterRunStatus
LAUNCHED = RemoteJobOrigin(
    RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin(host="localhost", port=1, location_name="place"), "repository"),
    "job",
)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run(instance: dg.DagsterInstance, status: Status, origin: RemoteJobOrigin | None = None) -> str:
    return instance.add_run(dg.DagsterRun(job_name="job", status=status, remote_job_origin=origin)).run_id


@pytest.mark.parametrize(
    ("status", "ended"),
    [(Status.STARTED, False), (Status.CANCELING, True), (Status.CANCELED, True), (Status.FAILURE, True)],
)
def test_command_line_run_is_interrupted_immediately(instance: dg.DagsterInstance, status: Status, ended: bool) -> None:
    assert EndedExternally(instance, run(instance, status))() is ended


@pytest.mark.parametrize("status", [Status.STARTED, Status.CANCELING])
def test_run_that_its_launcher_stops_is_not_interrupted(instance: dg.DagsterInstance, status: Status) -> None:
    assert not EndedExternally(instance, run(instance, status, LAUNCHED), grace_seconds=0)()


def test_launched_run_is_interrupted_after_a_grace_period(instance: dg.DagsterInstance) -> None:
    ended = EndedExternally(instance, run(instance, Status.FAILURE, LAUNCHED), grace_seconds=0.2)
    assert not ended()
    time.sleep(0.3)
    assert ended()


def test_deleted_run_is_not_interrupted(instance: dg.DagsterInstance) -> None:
    assert not EndedExternally(instance, "deleted")()
