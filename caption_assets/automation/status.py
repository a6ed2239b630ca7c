"""Whether automation runs from the start."""

from __future__ import annotations

import dagster as dg

from caption_assets.settings import Settings


def sensor_status(settings: Settings) -> dg.DefaultSensorStatus:
    """Of the sensors, until somebody starts or stops them in the UI."""
    return dg.DefaultSensorStatus.RUNNING if settings.automate else dg.DefaultSensorStatus.STOPPED


def schedule_status(settings: Settings) -> dg.DefaultScheduleStatus:
    """Of the schedule, likewise."""
    return dg.DefaultScheduleStatus.RUNNING if settings.automate else dg.DefaultScheduleStatus.STOPPED
