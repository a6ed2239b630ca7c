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

CreateHome = Callable[..., Path]
"""Creates the DAGSTER_HOME of the cluster's instance and sets it in this process."""
Deploy = Callable[..., Deployment]
"""Runs projects, given as settings by name, on the cluster's instance until the test ends."""


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the session; each test has a database of its own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def create_home(
    tmp_path: Path, server: PostgresServer, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> CreateHome:
    def create(*, runs_queue_up: bool = False) -> Path:
        folder = tmp_path / "home"
        folder.mkdir()
        for name, value in write_instance(folder, server, s3_server, runs_queue_up=runs_queue_up).items():
            monkeypatch.setenv(name, value)
        return folder

    return create


@pytest.fixture
def instance(create_home: CreateHome) -> Iterator[dg.DagsterInstance]:
    """The cluster's instance, for schedules and sensors that are evaluated in this process."""
    create_home()
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def deploy(create_home: CreateHome) -> Iterator[Deploy]:
    with ExitStack() as deployments:

        def enter(projects: Mapping[str, Mapping[str, str]], *, runs_queue_up: bool = False) -> Deployment:
            return deployments.enter_context(deployed(create_home(runs_queue_up=runs_queue_up), projects))

        yield enter
