from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import make_url

pytestmark = pytest.mark.fast

LOCKS = Path(__file__).parent.parent / "requirements"


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ \n]+)", (LOCKS / f"{lock}.lock").read_text(), re.MULTILINE))


def test_dagster_postgres_finds_the_driver_that_it_brings() -> None:
    assert make_url("postgresql://host/database").get_dialect().driver == "psycopg2"


@pytest.mark.parametrize("lock", ["gpu", "k8s"])
@pytest.mark.parametrize("package", ["dagster-postgres", "psycopg2-binary", "sqlalchemy"])
def test_a_cluster_reaches_postgresql_by_what_the_tests_run_with(lock: str, package: str) -> None:
    assert pins(lock)[package] == pins("cpu")[package]


@pytest.mark.parametrize("lock", ["slim", "cpu", "gpu", "k8s"])
def test_a_lock_names_no_place_to_install_from(lock: str) -> None:
    assert not re.search(r"://|--index|--find-links", (LOCKS / f"{lock}.lock").read_text())
