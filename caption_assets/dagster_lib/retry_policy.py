"""The retry policy of the steps."""

from __future__ import annotations

import dagster as dg

from caption_assets.settings import Settings

MAX_RETRIES = 3
"""Maximum number of retries of a step whose pod was lost. Checkpoints are reused."""


def step_retry_policy(settings: Settings) -> dg.RetryPolicy | None:
    """The retry policy of all steps.

    Dagster retries a step after any interruption. Only with a pod for each step does the retry run in another pod, and
    not in a run that is being canceled. Other executors would retry in the process that was signaled to stop.
    """
    return dg.RetryPolicy(max_retries=MAX_RETRIES) if settings.executor == "k8s" else None
