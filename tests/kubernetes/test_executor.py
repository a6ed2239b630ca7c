"""Tests of the failures that the executor detects in a step's Job and pods."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from kubernetes.client import (
    V1Container,
    V1ContainerState,
    V1ContainerStateTerminated,
    V1ContainerStateWaiting,
    V1ContainerStatus,
    V1JobStatus,
    V1ObjectMeta,
    V1Pod,
    V1PodCondition,
    V1PodSpec,
    V1PodStatus,
    V1ResourceRequirements,
)

from caption_assets.kubernetes.executor import build_pod_executor, find_failure, waiting_since
from caption_assets.settings import Settings, SettingsError

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING = V1JobStatus(active=1, start_time=NOW - timedelta(hours=1))
FAILED = V1JobStatus(failed=1)


def pod(
    phase: str, state: dict[str, Any] | None = None, *, minutes: float = 0, ending: float | None = None, **status: Any
) -> V1Pod:
    """A pod that was created ``minutes`` ago, with a deletion deadline ``ending`` minutes ago."""
    name = "dagster-step-1"
    container = V1ContainerStatus(
        name="dagster", image="i", image_id="i", ready=False, restart_count=0, state=V1ContainerState(**(state or {}))
    )
    limits = V1ResourceRequirements(limits={"memory": "2Gi"})
    return V1Pod(
        metadata=V1ObjectMeta(
            name=name,
            creation_timestamp=NOW - timedelta(minutes=minutes),
            deletion_timestamp=None if ending is None else NOW - timedelta(minutes=ending),
        ),
        spec=V1PodSpec(node_name="node1", containers=[V1Container(name="dagster", resources=limits)]),
        status=V1PodStatus(phase=phase, container_statuses=[container] if state else None, **status),
    )


def waiting(reason: str, message: str = "why") -> dict[str, Any]:
    return {"waiting": V1ContainerStateWaiting(reason=reason, message=message)}


def ended(reason: str, code: int) -> dict[str, Any]:
    return {"terminated": V1ContainerStateTerminated(reason=reason, exit_code=code)}


def failure_of(
    job: V1JobStatus | None, *pods: V1Pod, warnings: tuple[str, ...] = (), waiting_minutes: float = 0
) -> tuple[str, bool]:
    """Reason and retry of the failure of pods that wait for ``waiting_minutes``; an empty reason if there is none."""
    since = waiting_since(pods, {}, NOW - timedelta(minutes=waiting_minutes))
    found = find_failure(job, pods, warnings, since, NOW)
    return (found.reason, found.retry) if found else ("", False)


@pytest.mark.parametrize(
    "healthy",
    [
        pod("Running", minutes=600),
        pod("Pending", waiting("ContainerCreating"), minutes=29),
        pod("Pending", waiting("ErrImagePull"), minutes=29),
        pod("Running", minutes=600, ending=-1),
        pod("Running", minutes=600, ending=0.5),
    ],
)
def test_running_starting_or_ending_pod_is_healthy(healthy: V1Pod) -> None:
    assert failure_of(RUNNING, healthy, waiting_minutes=2) == ("", False)


def test_waiting_time_starts_when_the_pod_is_first_seen_waiting() -> None:
    stuck, healthy = pod("Pending", waiting("ErrImagePull"), minutes=20), pod("Pending", waiting("ContainerCreating"))
    first = waiting_since([stuck], {}, NOW)
    assert first == {"dagster-step-1": NOW}
    assert waiting_since([stuck], first, NOW + timedelta(minutes=2)) == first
    assert waiting_since([healthy], first, NOW + timedelta(minutes=2)) == {}


def test_pod_beyond_its_memory_limit_is_retried_with_the_limit_named() -> None:
    reason, retry = failure_of(FAILED, pod("Failed", ended("OOMKilled", 137)))
    assert "exceeded its memory limit of 2Gi (OOMKilled, exit code 137)" in reason
    assert retry


def test_failed_pod_is_retried_with_its_exit_code_named() -> None:
    reason, retry = failure_of(FAILED, pod("Failed", ended("Error", 139)))
    assert reason == "pod dagster-step-1 ended with exit code 139 (Error)"
    assert retry


def test_evicted_pod_is_retried_with_the_reason_named() -> None:
    reason, retry = failure_of(FAILED, pod("Failed", reason="Evicted", message="The node was low on memory"))
    assert reason == "pod dagster-step-1 failed: Evicted: The node was low on memory"
    assert retry


@pytest.mark.parametrize(
    ("state", "minutes"), [("ErrImageNeverPull", 0), ("ImagePullBackOff", 4), ("CreateContainerConfigError", 4)]
)
def test_pod_that_cannot_start_is_not_retried(state: str, minutes: float) -> None:
    assert failure_of(RUNNING, pod("Pending", waiting(state, "no such image")), waiting_minutes=minutes) == (
        f"pod dagster-step-1 cannot start: {state}: no such image",
        False,
    )


def test_pod_without_a_node_is_not_retried_after_half_an_hour() -> None:
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    scheduled = V1PodCondition(type="PodScheduled", status="False", message=message)
    reason, retry = failure_of(RUNNING, pod("Pending", minutes=31, conditions=[scheduled]))
    assert reason == f"pod dagster-step-1 has not started in 0:31:00: {message}"
    assert not retry


def test_pod_on_a_lost_node_is_retried() -> None:
    reason, retry = failure_of(RUNNING, pod("Running", minutes=600, ending=2))
    assert reason.endswith("still exists: its node node1 is lost")
    assert retry


def test_deleted_pod_is_retried() -> None:
    assert failure_of(FAILED) == ("its pod is missing: it was deleted, or its node was", True)


def test_step_whose_pod_was_removed_is_retried() -> None:
    reason, retry = failure_of(V1JobStatus(succeeded=1), pod("Succeeded", ended("Completed", 0)))
    assert reason.startswith("its pod was removed")
    assert retry


def test_deleted_job_is_retried() -> None:
    assert failure_of(None) == ("it was deleted externally", True)


def test_job_that_gets_no_pod_fails_with_the_reason() -> None:
    assert failure_of(RUNNING, warnings=("exceeded quota: captions",)) == (
        "Kubernetes creates no pod for it: exceeded quota: captions",
        False,
    )


@dg.job(executor_def=build_pod_executor(Settings()))
def job_with_pods() -> None:
    pass


def test_run_outside_a_cluster_is_an_error_with_the_setting(instance: dg.DagsterInstance) -> None:
    with pytest.raises(SettingsError, match="CAPTION_EXECUTOR=k8s: this run is not a pod of a cluster"):
        dg.execute_job(dg.reconstructable(job_with_pods), instance, raise_on_error=True)
