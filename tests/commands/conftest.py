from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from tests.automation.conftest import AutomationHarness


@pytest.fixture
def harness(tmp_path: Path, instance: dg.DagsterInstance) -> AutomationHarness:
    """A project with five registered shards and weights."""
    harness = AutomationHarness(tmp_path, instance)
    harness.add("a", "b", "c", "d", "e")
    harness.run_sensor()
    harness.store_weights()
    return harness
