"""The sensor that exports a shard's dataset once the shard is captioned."""

from __future__ import annotations

import dagster as dg

from caption_assets.automation.status import sensor_status
from caption_assets.dagster_lib.project import Project
from caption_assets.settings import Settings


def build_export_sensor(settings: Settings) -> dg.AutomationConditionSensorDefinition:
    """The sensor. It evaluates the automation condition of the asset."""
    return dg.AutomationConditionSensorDefinition(
        "export",
        target=dg.AssetSelection.assets(Project.of(settings).dataset),
        default_status=sensor_status(settings),
    )
