"""Dagster's private API: the one module that imports it.

A comment with each import says why the public API does not suffice. Check them all when Dagster's version changes. Only
type checkers import dagster-k8s, because the definitions must load where it is not installed.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dagster as dg

# Dagster's commands raise these errors for wrong options, with a traceback.
from dagster._check import CheckError as CheckError
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as AssetCheckEvaluationTargetMaterializationData,
)

# Runs of a command belong to the job of all assets, as those of the UI and of `dagster asset materialize`. No public
# function gives it in the form that the processes of steps can load.
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

# Dagster adds these tags to what a step returns, and adds none to logged events. It documents the data version's tag
# alone.
from dagster._core.definitions.data_version import CODE_VERSION_TAG as CODE_VERSION_TAG
from dagster._core.definitions.data_version import (
    DATA_VERSION_IS_USER_PROVIDED_TAG as DATA_VERSION_IS_USER_PROVIDED_TAG,
)
from dagster._core.definitions.data_version import DATA_VERSION_TAG as DATA_VERSION_TAG
from dagster._core.definitions.data_version import INPUT_DATA_VERSION_TAG_PREFIX as INPUT_DATA_VERSION_TAG_PREFIX
from dagster._core.definitions.data_version import INPUT_EVENT_POINTER_TAG_PREFIX as INPUT_EVENT_POINTER_TAG_PREFIX
from dagster._core.definitions.data_version import get_input_data_version_tag as get_input_data_version_tag
from dagster._core.definitions.data_version import get_input_event_pointer_tag as get_input_event_pointer_tag
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository

# Dagster raises this error after it has logged the failed check with its description.
from dagster._core.errors import DagsterAssetCheckFailedError as DagsterAssetCheckFailedError
from dagster._core.errors import DagsterUnknownPartitionError as DagsterUnknownPartitionError

# A shard in a run's range that the run leaves out gets its earlier plan again; Dagster reports plans only for new runs.
from dagster._core.events import AssetMaterializationPlannedData

# A run that a signal ended, or that repeats its step's failure, is recognized by its reason.
from dagster._core.events import RunFailureReason as RunFailureReason

# A step that logs several shards' materializations itself must give each the check's target, which no public name does.
# No setting starts the processes that mirror a step's output in groups of their own; see `isolate_log_processes`.
from dagster._core.execution import compute_logs

# A step that must not be retried is failed by an event; the health check's result always allows a retry.
from dagster._core.execution.plan.objects import StepFailureData, UserFailureData

# An executor that watches its pods replaces dagster-k8s's step handler; step handlers have no public base class.
from dagster._core.executor.step_delegating import CheckStepHealthResult as CheckStepHealthResult
from dagster._core.executor.step_delegating import StepHandler as StepHandler
from dagster._core.executor.step_delegating import StepHandlerContext as StepHandlerContext

# A run over a range of partitions is requested, and recognized, by its tags.
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG as ASSET_PARTITION_RANGE_END_TAG
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_START_TAG as ASSET_PARTITION_RANGE_START_TAG

# The UI does not show tags with this prefix. It would list one tag below another, before the run's assets and status.
from dagster._core.storage.tags import HIDDEN_TAG_PREFIX as HIDDEN_TAG_PREFIX
from dagster._core.storage.tags import PARTITION_NAME_TAG as PARTITION_NAME_TAG

# Dagster uses loggers of the definitions only in runs whose configuration names them: a click in the UI and
# `dagster asset materialize` log with this default console.
from dagster._loggers import colored_console_logger

# dagster-k8s merges its configuration levels with this function; another one might merge lists differently.
from dagster._utils.merger import deep_merge_dicts as deep_merge_dicts

# A schedule's own error does not name the setting that its cron expression comes from.
from dagster._utils.schedules import is_valid_cron_string as is_valid_cron_string

if TYPE_CHECKING:
    from dagster_k8s.executor import K8sStepHandler


def replace_console_logger(create: Callable[[dg.InitLoggerContext], logging.Logger]) -> None:
    """Replace the logger to the console of all runs in this process that do not configure another."""
    colored_console_logger._logger_fn = create


def replace_step_handler(executor: dg.Executor, wrap: Callable[[K8sStepHandler], StepHandler]) -> None:
    """Replace an executor's step handler. Its constructor takes the handler, but ``k8s_job_executor`` builds both."""
    delegating: Any = executor
    delegating._step_handler = wrap(delegating._step_handler)


def step_job(handler: K8sStepHandler, context: StepHandlerContext) -> tuple[Any, str, str]:
    """The Kubernetes client, Job name and namespace of a step. The handler has no public access to them."""
    namespace = handler._get_container_context(context).namespace
    return handler._api_client, handler._get_k8s_step_job_name(context), str(namespace)


def plan_materialization(instance: dg.DagsterInstance, run_id: str, asset: dg.AssetKey, partition: str) -> None:
    """Report that a run plans to materialize a partition, as Dagster does when it creates the run."""
    run = instance.get_run_by_id(run_id)
    plan = AssetMaterializationPlannedData(asset, partition)
    event = dg.DagsterEvent.build_asset_materialization_planned_event(run.job_name if run else "", "", plan)
    instance.report_dagster_event(event, run_id)


def asset_job(module: str, definitions: str) -> ReconstructableJob:
    """The job of all assets of the definitions, given their module and their name in it."""
    return ReconstructableRepository.for_module(module, definitions).get_reconstructable_job(IMPLICIT_ASSET_JOB_NAME)


def fail_step(context: StepHandlerContext, summary: str, reason: str) -> None:
    """Fail a step without a retry, whatever its retry policy."""
    [step] = context.execute_step_args.step_keys_to_execute or []
    words = UserFailureData(summary, reason)  # type: ignore[no-untyped-call]
    failure = StepFailureData(error=None, user_failure_data=words)  # type: ignore[no-untyped-call]
    dg.DagsterEvent.step_failure_event(context.get_step_context(step), failure, message=reason)


def isolate_log_processes() -> None:
    """Start the processes that mirror a step's output in groups of their own.

    A terminal sends Ctrl-C to the whole group of a command, and Dagster's watcher would end with a traceback.
    """
    isolated = SimpleNamespace(**vars(subprocess) | {"Popen": partial(subprocess.Popen, process_group=0)})
    setattr(compute_logs, "subprocess", isolated)  # noqa: B010  (its type is a module's)
