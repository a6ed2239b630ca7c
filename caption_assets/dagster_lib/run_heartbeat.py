"""The heartbeat of a run, with any executor.

The heartbeat is part of the executor. With one process, several or a cluster, only the executor runs in the run's own
process from before the first step until after the last one. Resources are created in the processes of the steps.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import dagster as dg

from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.store.heartbeat import INTERRUPT_SECONDS, Heartbeat


class EndedExternally:
    """Condition: a run was ended externally, and its process has not stopped.

    Args:
        instance: the instance of the run.
        run_id: the run's id.
        grace_seconds: time that a run has to stop after its launcher has signaled it.
    """

    def __init__(self, instance: dg.DagsterInstance, run_id: str, grace_seconds: float = INTERRUPT_SECONDS) -> None:
        self._instance = instance
        self._run_id = run_id
        self._grace_seconds = grace_seconds
        self._seen_at: float | None = None

    def __call__(self) -> bool:
        """Query the run's status."""
        run = self._instance.get_run_by_id(self._run_id)
        if run is None:  # deleted in the UI
            return False
        if run.remote_job_origin is None:  # a command-line run, which has no launcher
            return run.is_finished or run.status is dg.DagsterRunStatus.CANCELING
        if not run.is_finished:
            return False
        # The launcher may have sent a signal; a second one would end the run at once, without a checkpoint.
        self._seen_at = time.monotonic() if self._seen_at is None else self._seen_at
        return time.monotonic() - self._seen_at >= self._grace_seconds


def with_heartbeat(executor: dg.ExecutorDefinition, settings: Settings) -> dg.ExecutorDefinition:
    """Wrap an executor, so that each of its runs has a heartbeat in the root."""

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        assert executor.executor_creation_fn is not None  # set for Dagster's own executors
        return _WithHeartbeat(executor.executor_creation_fn(context), settings)

    schema: Any = executor.config_schema  # the constructor's annotation lacks its type
    return dg.ExecutorDefinition(
        executor.name,
        config_schema=schema,
        requirements=executor.get_requirements,
        executor_creation_fn=create,
        description=executor.description,
    )


class _WithHeartbeat(dg.Executor):
    """An executor within a heartbeat. Dagster does not export the types that are ``Any`` here."""

    def __init__(self, executor: dg.Executor, settings: Settings) -> None:
        self._executor = executor
        self._settings = settings

    @property
    def retries(self) -> Any:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> Any:
        return self._executor.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        run_id, instance, log = plan_context.run_id, plan_context.instance, plan_context.log
        with Heartbeat(
            build_storage(self._settings).root,
            run_id,
            self._settings.lease_seconds,
            has_ended=EndedExternally(instance, run_id),
            interrupt=lambda: os.kill(os.getpid(), signal.SIGINT),
            on_error=lambda reason: log.warning(f"the run's heartbeat failed: {reason}"),
        ):
            yield from self._executor.execute(plan_context, execution_plan)
