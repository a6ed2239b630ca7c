from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import make_url

pytestmark = pytest.mark.fast

LOCKS = Path(__file__).parent.parent / "requirements"


def pins(lock: str) -> dict[str, str]:
    """Versions in a lock file, by package."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ \n]+)", (LOCKS / f"{lock}.lock").read_text(), re.MULTILINE))


def test_postgresql_driver_is_the_one_that_dagster_installs() -> None:
    assert make_url("postgresql://host/database").get_dialect().driver == "psycopg2"


@pytest.mark.parametrize("lock", ["gpu", "k8s"])
@pytest.mark.parametrize("package", ["dagster-postgres", "psycopg2-binary", "sqlalchemy"])
def test_cluster_has_the_postgresql_packages_of_the_tests(lock: str, package: str) -> None:
    assert pins(lock)[package] == pins("cpu")[package]


@pytest.mark.parametrize("lock", ["slim", "cpu", "gpu", "k8s"])
def test_lock_file_names_no_index(lock: str) -> None:
    assert not re.search(r"://|--index|--find-links", (LOCKS / f"{lock}.lock").read_text())
