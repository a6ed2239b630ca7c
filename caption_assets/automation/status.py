"""The default status of sensors and schedules, from CAPTION_AUTOMATE."""

from __future__ import annotations

import dagster as dg

from caption_assets.settings import Settings


def sensor_status(settings: Settings) -> dg.DefaultSensorStatus:
    """The status of sensors that were not started or stopped in the UI."""
    return dg.DefaultSensorStatus.RUNNING if settings.automate else dg.DefaultSensorStatus.STOPPED


def schedule_status(settings: Settings) -> dg.DefaultScheduleStatus:
    """The status of schedules that were not started or stopped in the UI."""
    return dg.DefaultScheduleStatus.RUNNING if settings.automate else dg.DefaultScheduleStatus.STOPPED
