"""Dagster's entry point: ``-m caption_assets.definitions``. It loads neither torch nor transformers nor vllm."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import dagster as dg

# Partitions of external assets and checks, backfill policies and skippable specs are preview or beta features.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
warnings.filterwarnings("ignore", category=dg.BetaWarning)
# The job that the schedule's target makes; requested runs have the policies of their assets.
warnings.filterwarnings("ignore", message="Asset job .* materializes assets with varying BackfillPolicies")

from caption_assets.assets.captioned_dataset import build_captioned_dataset  # noqa: E402
from caption_assets.assets.captions import build_captions  # noqa: E402
from caption_assets.assets.check_definitions import build_weights_check  # noqa: E402
from caption_assets.assets.clip_manifest import build_clip_manifest  # noqa: E402
from caption_assets.assets.model_weights import build_model_weights  # noqa: E402
from caption_assets.assets.shard_index import build_shard_index, build_shards  # noqa: E402
from caption_assets.automation.alerts import (  # noqa: E402
    build_failure_alerts,
    build_overdue_alerts,
    build_overdue_check,
)
from caption_assets.automation.dead_runs import build_dead_runs  # noqa: E402
from caption_assets.automation.export import build_correction_sensor, build_export_sensor  # noqa: E402
from caption_assets.automation.new_shards import build_new_shards  # noqa: E402
from caption_assets.automation.removals import build_removal_check  # noqa: E402
from caption_assets.automation.schedule import build_backfill  # noqa: E402
from caption_assets.automation.status_report import build_status_report  # noqa: E402
from caption_assets.captioning.library_logs import log_libraries  # noqa: E402
from caption_assets.dagster_lib.command_errors import report_errors_briefly  # noqa: E402
from caption_assets.dagster_lib.console import use_quiet_console  # noqa: E402
from caption_assets.dagster_lib.project import Project  # noqa: E402
from caption_assets.dagster_lib.project_claim import check_claim  # noqa: E402
from caption_assets.dagster_lib.run_heartbeat import with_heartbeat  # noqa: E402
from caption_assets.resources import build_resources, build_storage  # noqa: E402
from caption_assets.settings import Settings, load_settings  # noqa: E402

LOG_LEVEL = "CAPTION_LOG_LEVEL"
"""Environment variable of the setting ``log_level``."""


def build_definitions(settings: Settings) -> dg.Definitions:
    """Build all assets, checks, sensors, schedules and resources."""
    project = Project.of(settings)
    return dg.Definitions(
        assets=[
            build_shards(project),
            build_shard_index(project),
            build_model_weights(settings),
            build_clip_manifest(settings),
            build_captions(settings),
            *([build_captioned_dataset(settings, settings.dataset)] if settings.dataset else []),
        ],
        asset_checks=[build_overdue_check(settings), build_removal_check(settings), build_weights_check(settings)],
        sensors=[
            build_dead_runs(settings),
            build_new_shards(settings),
            build_status_report(settings),
            build_overdue_alerts(settings),
            build_failure_alerts(settings),
            *([build_export_sensor(settings), build_correction_sensor(settings)] if settings.dataset else []),
        ],
        schedules=[build_backfill(settings)],
        resources=build_resources(settings),
        executor=with_heartbeat(_executor(settings), settings),
    )


def _executor(settings: Settings) -> dg.ExecutorDefinition:
    """The executor. By default all steps share the run's process: another one would import Dagster for each step."""
    match settings.executor:
        case "in_process":
            return dg.in_process_executor
        case "multiprocess":
            return dg.multiprocess_executor
        case "k8s":
            from caption_assets.kubernetes.executor import build_pod_executor

            return build_pod_executor(settings)


def load_definitions() -> dg.Definitions:
    """Load the definitions that the environment configures.

    Raises:
        SettingsError: if a setting is invalid.
        ProjectClash: if another root or source has claimed the project's name on the Dagster instance.
    """
    is_debug = os.environ.get(LOG_LEVEL) == "debug"  # read here too: other settings may be invalid
    if not is_debug:
        report_errors_briefly(None)
    settings = load_settings()
    if is_debug:
        log_libraries()
    else:
        use_quiet_console()
        report_errors_briefly(Project.of(settings))
    if _has_instance():
        with dg.DagsterInstance.get() as instance:
            check_claim(instance, Project.of(settings), build_storage(settings))
    return build_definitions(settings)


def _has_instance() -> bool:
    """Whether DAGSTER_HOME contains an instance.

    In a run's pod it does not, and the pod's disk is read-only: the launcher passes the instance to the run.
    """
    home = os.environ.get("DAGSTER_HOME", "")
    return bool(home) and any(Path(home).expanduser().joinpath(name).exists() for name in ("dagster.yaml", "history"))


defs = load_definitions()
