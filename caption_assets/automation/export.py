"""The sensor that has a shard's dataset made when its captions are."""

from __future__ import annotations

import dagster as dg

from caption_assets.automation.status import sensor_status
from caption_assets.dagster_lib.project import Project
from caption_assets.settings import Settings


def build_export_sensor(settings: Settings) -> dg.AutomationConditionSensorDefinition:
    """It goes by the asset's own condition."""
    return dg.AutomationConditionSensorDefinition(
        "export",
        target=dg.AssetSelection.assets(Project(settings.project).dataset),
        default_status=sensor_status(settings),
    )
