"""The schedule's requests on PostgreSQL, evaluated in this process; the runs are created and not executed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import dagster as dg
import pytest

from tests.automation.conftest import Site

pytestmark = [pytest.mark.postgres]

STARTED = dg.DagsterRunStatus.STARTED


@pytest.mark.representative
def test_a_tick_requests_a_run_while_128_shards_are_under_way(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    site = Site(tmp_path, instance, shards_per_run=128, backfill_concurrency=136)
    site.add(*(sha256(bytes([number])).hexdigest()[:24] for number in range(136)))
    site.look()
    site.fetch_weights()
    first, _ = site.requests()
    site.launch(first, STARTED)  # before its shards had a tag each, PostgreSQL refused this one
    [last] = site.requests()
    site.launch(last, STARTED)
    assert site.tick() == "0 of 136 shards are captioned; 136 are under way"


def test_long_names_of_shards_fit_the_indexes(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    site = Site(tmp_path, instance)
    site.add("a" * 240, "b" * 240)
    site.look()
    site.fetch_weights()
    [manifests] = site.requests()
    site.launch(manifests, dg.DagsterRunStatus.FAILURE)
    site.materialize("clip_manifest", *site.registered)
    [captions] = site.requests()
    site.launch(captions, STARTED)
    assert "2 are under way" in str(site.tick())
