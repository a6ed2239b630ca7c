"""What is concluded from a step's Job and its pods, as Kubernetes describes them."""

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

from caption_assets.kubernetes.executor import build_pod_executor, find_trouble, hindered_since
from caption_assets.settings import Settings, SettingsError

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING = V1JobStatus(active=1, start_time=NOW - timedelta(hours=1))
FAILED = V1JobStatus(failed=1)


def pod(
    phase: str, state: dict[str, Any] | None = None, *, minutes: float = 0, going: float | None = None, **status: Any
) -> V1Pod:
    """A pod that was made some minutes ago, and whose time to end was some minutes ago if it is going."""
    name = "dagster-step-1"
    container = V1ContainerStatus(
        name="dagster", image="i", image_id="i", ready=False, restart_count=0, state=V1ContainerState(**(state or {}))
    )
    limits = V1ResourceRequirements(limits={"memory": "2Gi"})
    return V1Pod(
        metadata=V1ObjectMeta(
            name=name,
            creation_timestamp=NOW - timedelta(minutes=minutes),
            deletion_timestamp=None if going is None else NOW - timedelta(minutes=going),
        ),
        spec=V1PodSpec(node_name="node1", containers=[V1Container(name="dagster", resources=limits)]),
        status=V1PodStatus(phase=phase, container_statuses=[container] if state else None, **status),
    )


def waiting(reason: str, message: str = "why") -> dict[str, Any]:
    return {"waiting": V1ContainerStateWaiting(reason=reason, message=message)}


def ended(reason: str, code: int) -> dict[str, Any]:
    return {"terminated": V1ContainerStateTerminated(reason=reason, exit_code=code)}


def trouble(
    job: V1JobStatus | None, *pods: V1Pod, complaints: tuple[str, ...] = (), hindered: float = 0
) -> tuple[str, bool]:
    """What is found, of pods that have been hindered for some minutes."""
    since = hindered_since(pods, {}, NOW - timedelta(minutes=hindered))
    found = find_trouble(job, pods, complaints, since, NOW)
    return (found.reason, found.retry) if found else ("", False)


@pytest.mark.parametrize(
    "healthy",
    [
        pod("Running", minutes=600),
        pod("Pending", waiting("ContainerCreating"), minutes=29),
        pod("Pending", waiting("ErrImagePull"), minutes=29),
        pod("Running", minutes=600, going=-1),
        pod("Running", minutes=600, going=0.5),
    ],
)
def test_a_pod_that_works_starts_or_goes_is_left_alone(healthy: V1Pod) -> None:
    assert trouble(RUNNING, healthy, hindered=2) == ("", False)


def test_a_pod_is_hindered_since_it_was_first_seen_so_and_not_since_it_was_made() -> None:
    stuck, fine = pod("Pending", waiting("ErrImagePull"), minutes=20), pod("Pending", waiting("ContainerCreating"))
    first = hindered_since([stuck], {}, NOW)
    assert first == {"dagster-step-1": NOW}
    assert hindered_since([stuck], first, NOW + timedelta(minutes=2)) == first
    assert hindered_since([fine], first, NOW + timedelta(minutes=2)) == {}


def test_a_pod_that_took_too_much_memory_says_so_and_is_tried_again() -> None:
    reason, retry = trouble(FAILED, pod("Failed", ended("OOMKilled", 137)))
    assert "more memory than its limit of 2Gi (OOMKilled, exit code 137)" in reason
    assert retry


def test_a_pod_that_ended_otherwise_tells_its_exit_code() -> None:
    reason, retry = trouble(FAILED, pod("Failed", ended("Error", 139)))
    assert reason == "pod dagster-step-1 ended with exit code 139 (Error)"
    assert retry


def test_an_evicted_pod_tells_why() -> None:
    reason, retry = trouble(FAILED, pod("Failed", reason="Evicted", message="The node was low on memory"))
    assert reason == "pod dagster-step-1 failed: Evicted: The node was low on memory"
    assert retry


@pytest.mark.parametrize(
    ("word", "minutes"), [("ErrImageNeverPull", 0), ("ImagePullBackOff", 4), ("CreateContainerConfigError", 4)]
)
def test_a_pod_that_cannot_start_fails_for_good(word: str, minutes: float) -> None:
    assert trouble(RUNNING, pod("Pending", waiting(word, "no such image")), hindered=minutes) == (
        f"pod dagster-step-1 cannot start: {word}: no such image",
        False,
    )


def test_a_pod_that_no_node_has_room_for_fails_for_good_after_half_an_hour() -> None:
    why = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    scheduled = V1PodCondition(type="PodScheduled", status="False", message=why)
    reason, retry = trouble(RUNNING, pod("Pending", minutes=31, conditions=[scheduled]))
    assert reason == f"pod dagster-step-1 has not started in 0:31:00: {why}"
    assert not retry


def test_a_pod_whose_node_is_lost_is_tried_again() -> None:
    reason, retry = trouble(RUNNING, pod("Running", minutes=600, going=2))
    assert reason.endswith("is still there: its node node1 is lost")
    assert retry


def test_a_pod_that_was_deleted_without_a_word_is_tried_again() -> None:
    assert trouble(FAILED) == ("its pod is gone: it was deleted, or its node was", True)


def test_a_step_that_kubernetes_began_anew_is_tried_again_by_dagster() -> None:
    reason, retry = trouble(V1JobStatus(succeeded=1), pod("Succeeded", ended("Completed", 0)))
    assert reason.startswith("its pod was taken away")
    assert retry


def test_a_job_that_was_deleted_is_tried_again() -> None:
    assert trouble(None) == ("it was deleted by somebody else", True)


def test_a_job_that_gets_no_pod_tells_why() -> None:
    assert trouble(RUNNING, complaints=("exceeded quota: captions",)) == (
        "Kubernetes makes no pod for it: exceeded quota: captions",
        False,
    )


@dg.job(executor_def=build_pod_executor(Settings()))
def job_with_pods() -> None:
    pass


def test_a_run_that_is_no_pod_itself_can_start_none_and_says_so(instance: dg.DagsterInstance) -> None:
    with pytest.raises(SettingsError, match="CAPTION_EXECUTOR=k8s: this run is no pod of a cluster"):
        dg.execute_job(dg.reconstructable(job_with_pods), instance, raise_on_error=True)
