"""The Kubernetes executor: it starts a pod for each step, and reports the reason when a pod is lost.

dagster-k8s starts the pods, but checks only whether a Job has failed. The run of a pod that never starts, or that has
lost its node, would stay in progress forever. The run of a failed pod would not show the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from dagster_k8s import K8sRunLauncher, k8s_job_executor
from kubernetes.client import V1JobStatus, V1Pod

from caption_assets.dagster_lib.private_dagster import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
    deep_merge_dicts,
    fail_step,
    replace_step_handler,
    step_job,
)
from caption_assets.kubernetes.pods import step_pod
from caption_assets.settings import Settings, SettingsError

if TYPE_CHECKING:
    from dagster_k8s.executor import K8sStepHandler

NEVER_STARTS = frozenset({"ErrImageNeverPull", "InvalidImageName"})
"""Reasons of a waiting container that do not resolve by themselves."""
MAY_NOT_START = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
"""Reasons of a waiting container that may resolve by themselves."""
RESOLVE_TIME = timedelta(minutes=3)
"""Maximum time for such a reason to resolve after it is first seen, and for a Job to get a pod."""
START_TIME = timedelta(minutes=30)
"""Maximum time for a pod to get a node, its volumes and its image, as for a run's pod in ``k8s/values.yaml``: a GPU
node may have to be started, and an image with CUDA takes minutes."""
LOST_TIME = timedelta(minutes=1)
"""Maximum time that a pod may exceed its grace period. After it, the node counts as lost."""


@dataclass(frozen=True, slots=True)
class PodFailure:
    """The failure of a step's pod."""

    reason: str
    """The reason, with a remedy if one is known."""
    retry: bool = True
    """Whether another pod may succeed."""


def build_pod_executor(settings: Settings) -> dg.ExecutorDefinition:
    """Build dagster-k8s's executor with a pod watch. Kubernetes deletes the steps' pods together with the run's pod."""
    plain: Any = k8s_job_executor  # its attributes have no types

    @dg.executor(
        name="k8s", config_schema=plain.config_schema, requirements=dg.multiple_process_executor_requirements()
    )
    def pod_executor(context: dg.InitExecutorContext) -> dg.Executor:
        launcher = context.instance.run_launcher
        if not isinstance(launcher, K8sRunLauncher):
            raise SettingsError(
                "CAPTION_EXECUTOR=k8s: this run is not a pod of a cluster, because the instance's run launcher is "
                f"{type(launcher).__name__}: launch it from an instance with K8sRunLauncher "
                "(docs/how-to/kubernetes.md), or set CAPTION_EXECUTOR=in_process"
            )
        given: Any = context.executor_config
        common = deep_merge_dicts(step_pod(settings), given.get("step_k8s_config", {}))
        config = {**given, "step_k8s_config": common, "enable_owner_references": True}
        executor = cast(dg.Executor, plain.executor_creation_fn(context._replace(executor_config=config)))
        replace_step_handler(executor, _WatchedPods)
        return executor

    return pod_executor


class _WatchedPods(StepHandler):
    """dagster-k8s's step handler with another health check."""

    def __init__(self, jobs: K8sStepHandler) -> None:
        self._jobs = jobs
        self._waiting_since: dict[str, dict[str, datetime]] = {}

    @property
    def name(self) -> str:
        return str(self._jobs.name)

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        return self._jobs.launch_step(step_handler_context)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        return self._jobs.terminate_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Check a step that Dagster counts as running. Dagster calls this every 20 s."""
        if _is_over(step_handler_context):
            return CheckStepHealthResult.healthy()
        api, job, namespace = step_job(self._jobs, step_handler_context)
        status = api.get_job_status(job, namespace)
        pods = api.get_pods_in_job(job, namespace)
        warnings = []
        if not pods:
            events = api.core_api.list_namespaced_event(namespace, field_selector=f"involvedObject.name={job}").items
            warnings = [event.message for event in events if event.type == "Warning"]
        now = datetime.now(UTC)
        self._waiting_since[job] = waiting_since(pods, self._waiting_since.get(job, {}), now)
        failure = find_failure(status, pods, warnings, self._waiting_since[job], now)
        if failure is None:
            return CheckStepHealthResult.healthy()
        if status and not (status.failed or status.succeeded):  # a waiting or unreachable pod must not start later
            list(self.terminate_step(step_handler_context))
        reason = f"Job {job}: {failure.reason}"
        if failure.retry:
            return CheckStepHealthResult.unhealthy(reason)
        fail_step(step_handler_context, "cannot start", reason)
        return CheckStepHealthResult.healthy()


def waiting_since(pods: Sequence[V1Pod], before: Mapping[str, datetime], now: datetime) -> dict[str, datetime]:
    """Time since which each pod waits for a reason that may resolve, by the pod's name.

    A pod's creation time is not usable: the pod may have waited for its node, or have pulled its image slowly.

    Args:
        pods: the pods of a Job.
        before: the result of the previous check.
        now: the current time.
    """
    return {
        pod.metadata.name: before.get(pod.metadata.name, now)
        for pod in pods
        if _waiting_reason(pod)[0] in MAY_NOT_START
    }


def find_failure(
    job: V1JobStatus | None,
    pods: Sequence[V1Pod],
    warnings: Sequence[str],
    waiting: Mapping[str, datetime],
    now: datetime,
) -> PodFailure | None:
    """The failure of a step that has not reported its end; None if it runs or may still start.

    Args:
        job: the Job's status; None if the Job does not exist.
        pods: the Job's pods.
        warnings: Kubernetes' warnings about the Job.
        waiting: the result of ``waiting_since``.
        now: the current time.
    """
    if job is None:
        return PodFailure("it was deleted externally")
    for pod in pods:
        if failure := _end(pod) if job.failed else _wait(pod, waiting.get(pod.metadata.name, now), now):
            return failure
    if job.failed:
        return PodFailure("its pod is missing: it was deleted, or its node was")
    if job.succeeded:
        return PodFailure(
            "its pod was removed, and the replacement that Kubernetes started found the step already started"
        )
    if not pods and job.start_time and now - job.start_time > RESOLVE_TIME:
        return PodFailure(f"Kubernetes creates no pod for it: {'; '.join(warnings) or 'no reason given'}", retry=False)
    return None


def _end(pod: V1Pod) -> PodFailure | None:
    """The failure of a pod that has ended."""
    name, status = pod.metadata.name, pod.status
    for container in status.container_statuses or []:
        end = container.state.terminated
        if end and end.reason == "OOMKilled":
            limit = (pod.spec.containers[0].resources.limits or {}).get("memory", "its node's")
            return PodFailure(
                f"pod {name} exceeded its memory limit of {limit} (OOMKilled, exit code {end.exit_code}): lower "
                "CAPTION_DECODE_WORKERS, CAPTION_FRAMES_GB or CAPTION_PROCESSOR_CACHE_GB, or raise the limit"
            )
        if end and end.exit_code:
            details = " ".join(filter(None, [status.reason, status.message, end.message]))
            return PodFailure(f"pod {name} ended with exit code {end.exit_code} ({end.reason}) {details}".rstrip())
    if status.reason:  # Evicted, Preempting, NodeLost
        return PodFailure(f"pod {name} failed: {status.reason}: {status.message}")
    return None


def _wait(pod: V1Pod, since: datetime, now: datetime) -> PodFailure | None:
    """The failure of a pod that has waited too long to start or to end."""
    name, waits = pod.metadata.name, now - pod.metadata.creation_timestamp
    ending = pod.metadata.deletion_timestamp
    if ending and now - ending > LOST_TIME:
        return PodFailure(
            f"pod {name} should have ended at {ending:%H:%M:%S} and still exists: its node {_node(pod)} is lost"
        )
    if ending or pod.status.phase != "Pending":
        return None
    reason, message = _waiting_reason(pod)
    if reason in NEVER_STARTS or (reason in MAY_NOT_START and now - since > RESOLVE_TIME):
        return PodFailure(f"pod {name} cannot start: {reason}: {message}", retry=False)
    if waits > START_TIME:
        causes = [condition.message for condition in pod.status.conditions or [] if condition.message]
        return PodFailure(f"pod {name} has not started in {waits}: {'; '.join(causes) or reason}", retry=False)
    return None


def _waiting_reason(pod: V1Pod) -> tuple[str, str]:
    """Reason and message of a pod's waiting container; empty if none waits."""
    for container in pod.status.container_statuses or []:
        if waiting := container.state.waiting:
            return waiting.reason or "", waiting.message or ""
    return "", ""


def _node(pod: V1Pod) -> str:
    return str(pod.spec.node_name)


def _is_over(context: StepHandlerContext) -> bool:
    """Whether the current attempt has logged its end, which Dagster will read next."""
    arguments = context.execute_step_args
    [step] = arguments.step_keys_to_execute or []
    assert arguments.known_state is not None
    earlier = arguments.known_state.get_retry_state().get_attempt_count(step)
    return any(
        len(stats.attempts_list) > earlier for stats in context.instance.get_run_step_stats(arguments.run_id, [step])
    )
