from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest

from tests.postgres.deployment import Deployment, deployed
from tests.postgres.instance import write_instance
from tests.postgres.server import PostgresServer, postgres_server
from tests.store.server import S3Server

Home = Callable[..., Path]
"""Makes a DAGSTER_HOME of the cluster's instance, which this process has from then on."""
Deploy = Callable[..., Deployment]
"""Runs the projects of a mapping, settings by name, on the cluster's instance until the test ends."""


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the session; each test has a database of its own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, server: PostgresServer, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Home:
    def make(*, runs_queue_up: bool = False) -> Path:
        folder = tmp_path / "home"
        folder.mkdir()
        for name, value in write_instance(folder, server, s3_server, runs_queue_up=runs_queue_up).items():
            monkeypatch.setenv(name, value)
        return folder

    return make


@pytest.fixture
def instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """The cluster's instance, for schedules and sensors that are evaluated in this process."""
    home()
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def deploy(home: Home) -> Iterator[Deploy]:
    with ExitStack() as deployments:

        def enter(projects: Mapping[str, Mapping[str, str]], *, runs_queue_up: bool = False) -> Deployment:
            return deployments.enter_context(deployed(home(runs_queue_up=runs_queue_up), projects))

        yield enter
