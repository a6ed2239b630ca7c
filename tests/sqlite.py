"""Faster SQLite storages of Dagster: no repeated work for each database and connection."""

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
    """Load Alembic's migrations once per kind of storage, and create one SQLAlchemy engine per database.

    Dagster loads its 89 migrations whenever it opens a database, and each run has one: 30 ms of CPU time. It creates an
    engine for each connection, which compiles each statement again: a quarter of the time of the schedule's tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", cache(ScriptDirectory.from_config))
        for storage in STORAGES:
            patch.setattr(storage, "create_engine", _one_for_each_url(storage.create_engine))
        yield


def _one_for_each_url(create: Callable[..., Engine]) -> Callable[..., Engine]:
    engines: dict[str, Engine] = {}

    def create_once(url: str, **options: Any) -> Engine:
        """Create each engine once: the options are always the same, with a pool that keeps no connection open."""
        if url not in engines:
            engines[url] = create(url, **options)
        return engines[url]

    return create_once
