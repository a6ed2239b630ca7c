"""The executor that gives each step a Kubernetes pod of its own, and that finds out why a pod is lost.

dagster-k8s starts the pods. It looks at nothing but whether a Job has failed: a pod that never starts, or whose node is
gone, would keep its run going for ever, and of one that has failed the run would not say why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from dagster_k8s import K8sRunLauncher, k8s_job_executor
from kubernetes.client import V1JobStatus, V1Pod

from caption_assets.dagster_lib.private import (
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
"""Why a container waits, where waiting does not help."""
HARDLY_STARTS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
"""The same, where it may."""
MEND_TIME = timedelta(minutes=3)
"""How long it is waited for those, from when one was first seen, and for a Job that gets no pod."""
START_TIME = timedelta(minutes=30)
"""How long a pod may wait for a node, its volumes and its image, like a run's pod in ``k8s/values.yaml``: a node with
GPUs may have to be started, and an image with CUDA takes minutes."""
LOST_TIME = timedelta(minutes=1)
"""How much longer than its grace period a pod may take to go: then its node does not answer."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a step's pod will not do its work."""

    reason: str
    """With what may be done about it."""
    retry: bool = True
    """Whether another pod may fare better."""


def build_pod_executor(settings: Settings) -> dg.ExecutorDefinition:
    """dagster-k8s's executor, which watches its pods more closely, and whose pods go when the run's pod goes."""
    plain: Any = k8s_job_executor  # its parts are not typed

    @dg.executor(
        name="k8s", config_schema=plain.config_schema, requirements=dg.multiple_process_executor_requirements()
    )
    def pod_executor(context: dg.InitExecutorContext) -> dg.Executor:
        launcher = context.instance.run_launcher
        if not isinstance(launcher, K8sRunLauncher):
            raise SettingsError(
                "CAPTION_EXECUTOR=k8s: this run is no pod of a cluster, for the instance's run launcher is "
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
    """Starts and ends pods as dagster-k8s does, and looks at them besides."""

    def __init__(self, jobs: K8sStepHandler) -> None:
        self._jobs = jobs
        self._hindered: dict[str, dict[str, datetime]] = {}

    @property
    def name(self) -> str:
        return str(self._jobs.name)

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        return self._jobs.launch_step(step_handler_context)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        return self._jobs.terminate_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Asked every 20 s while the step is under way, for all that Dagster knows."""
        if _is_over(step_handler_context):
            return CheckStepHealthResult.healthy()
        api, job, namespace = step_job(self._jobs, step_handler_context)
        status = api.get_job_status(job, namespace)
        pods = api.get_pods_in_job(job, namespace)
        complaints = []
        if not pods:
            events = api.core_api.list_namespaced_event(namespace, field_selector=f"involvedObject.name={job}").items
            complaints = [event.message for event in events if event.type == "Warning"]
        now = datetime.now(UTC)
        self._hindered[job] = hindered_since(pods, self._hindered.get(job, {}), now)
        trouble = find_trouble(status, pods, complaints, self._hindered[job], now)
        if trouble is None:
            return CheckStepHealthResult.healthy()
        if status and not (status.failed or status.succeeded):  # what waits, or cannot be reached, must not come back
            list(self.terminate_step(step_handler_context))
        reason = f"Job {job}: {trouble.reason}"
        if trouble.retry:
            return CheckStepHealthResult.unhealthy(reason)
        fail_step(step_handler_context, "cannot start", reason)
        return CheckStepHealthResult.healthy()


def hindered_since(pods: Sequence[V1Pod], before: Mapping[str, datetime], now: datetime) -> dict[str, datetime]:
    """Since when each pod is kept from starting by what may yet be mended, by name.

    Not since it was made: it may have waited for its node, and its image may have come slowly until the first trouble.

    Args:
        pods: a Job's.
        before: what was found at the last look.
        now: the time.
    """
    return {pod.metadata.name: before.get(pod.metadata.name, now) for pod in pods if _obstacle(pod)[0] in HARDLY_STARTS}


def find_trouble(
    job: V1JobStatus | None,
    pods: Sequence[V1Pod],
    complaints: Sequence[str],
    hindered: Mapping[str, datetime],
    now: datetime,
) -> Trouble | None:
    """What is wrong with a step that has not told its end; None if nothing is, or it may still come right.

    Args:
        job: the Job's status; None if there is no such Job.
        pods: the Job's.
        complaints: what Kubernetes has to say of the Job.
        hindered: as ``hindered_since`` finds it.
        now: the time.
    """
    if job is None:
        return Trouble("it was deleted by somebody else")
    for pod in pods:
        if trouble := _end(pod) if job.failed else _wait(pod, hindered.get(pod.metadata.name, now), now):
            return trouble
    if job.failed:
        return Trouble("its pod is gone: it was deleted, or its node was")
    if job.succeeded:
        return Trouble("its pod was taken away, and another that Kubernetes started in its place found the step begun")
    if not pods and job.start_time and now - job.start_time > MEND_TIME:
        return Trouble(f"Kubernetes makes no pod for it: {'; '.join(complaints) or 'no reason is given'}", retry=False)
    return None


def _end(pod: V1Pod) -> Trouble | None:
    """Why a pod that is over has failed."""
    name, status = pod.metadata.name, pod.status
    for container in status.container_statuses or []:
        end = container.state.terminated
        if end and end.reason == "OOMKilled":
            limit = (pod.spec.containers[0].resources.limits or {}).get("memory", "its node's")
            return Trouble(
                f"pod {name} took more memory than its limit of {limit} (OOMKilled, exit code {end.exit_code}): lower "
                "CAPTION_DECODE_WORKERS, CAPTION_FRAMES_GB or CAPTION_PROCESSOR_CACHE_GB, or give it more"
            )
        if end and end.exit_code:
            said = " ".join(filter(None, [status.reason, status.message, end.message]))
            return Trouble(f"pod {name} ended with exit code {end.exit_code} ({end.reason}) {said}".rstrip())
    if status.reason:  # before its containers ran, or with them: Evicted, Preempting, NodeLost
        return Trouble(f"pod {name} failed: {status.reason}: {status.message}")
    return None


def _wait(pod: V1Pod, hindered: datetime, now: datetime) -> Trouble | None:
    """Why a pod waits for too long, to start or to go."""
    name, waits = pod.metadata.name, now - pod.metadata.creation_timestamp
    going = pod.metadata.deletion_timestamp
    if going and now - going > LOST_TIME:
        return Trouble(f"pod {name} was to end at {going:%H:%M:%S} and is still there: its node {_node(pod)} is lost")
    if going or pod.status.phase != "Pending":
        return None
    word, sentence = _obstacle(pod)
    if word in NEVER_STARTS or (word in HARDLY_STARTS and now - hindered > MEND_TIME):
        return Trouble(f"pod {name} cannot start: {word}: {sentence}", retry=False)
    if waits > START_TIME:
        causes = [condition.message for condition in pod.status.conditions or [] if condition.message]
        return Trouble(f"pod {name} has not started in {waits}: {'; '.join(causes) or word}", retry=False)
    return None


def _obstacle(pod: V1Pod) -> tuple[str, str]:
    """Why a pod's container waits, as a word and a sentence; empty if none does."""
    for container in pod.status.container_statuses or []:
        if waiting := container.state.waiting:
            return waiting.reason or "", waiting.message or ""
    return "", ""


def _node(pod: V1Pod) -> str:
    return str(pod.spec.node_name)


def _is_over(context: StepHandlerContext) -> bool:
    """Whether the present attempt has told its end: Dagster is about to read of it."""
    arguments = context.execute_step_args
    [step] = arguments.step_keys_to_execute or []
    assert arguments.known_state is not None
    earlier = arguments.known_state.get_retry_state().get_attempt_count(step)
    return any(
        len(stats.attempts_list) > earlier for stats in context.instance.get_run_step_stats(arguments.run_id, [step])
    )
