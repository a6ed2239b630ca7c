from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.postgres.instance import write_instance
from tests.postgres.server import PostgresServer, postgres_server
from tests.store.server import S3Server


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the session; each test has a database of its own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def instance(
    tmp_path: Path, server: PostgresServer, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The cluster's instance, for schedules and sensors that are evaluated in this process."""
    home = tmp_path / "home"
    home.mkdir()
    for name, value in write_instance(home, server, s3_server).items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        yield instance
