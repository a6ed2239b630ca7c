"""SQLite storages of Dagster without repeated work for each database and connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from sqlalchemy import Engine

STORAGES = (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)


@contextmanager
def quick_sqlite() -> Iterator[None]:
    """Load Alembic's migrations once per type of storage, and create one SQLAlchemy engine per database.

    Dagster loads its 89 migrations for each database, which takes 30 ms of CPU time, and each run has a database. It
    creates an engine for each connection, which compiles every statement again: a quarter of the schedule tests' time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", cache(ScriptDirectory.from_config))
        for storage in STORAGES:
            patch.setattr(storage, "create_engine", _cached_by_url(storage.create_engine))
        yield


def _cached_by_url(create: Callable[..., Engine]) -> Callable[..., Engine]:
    engines: dict[str, Engine] = {}

    def create_once(url: str, **options: Any) -> Engine:
        """Create each engine once. The options are always the same; their pool keeps no connection open."""
        if url not in engines:
            engines[url] = create(url, **options)
        return engines[url]

    return create_once
