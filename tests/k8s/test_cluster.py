"""Tests of runs on a real cluster with one (simulated) GPU and one slot in the pool."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
from kubernetes.client import V1Pod

from caption_assets.sample.shards import FOLDER_SHARD
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.tables import Status, read_captions, read_manifest
from tests.k8s.cluster import Cluster, kubectl
from tests.k8s.conftest import LONG_SHARD
from tests.k8s.manifests import TEST_NAMESPACE, render
from tests.processes import wait_until
from tests.stages import STAGE1, STAGE2

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(900)]

CHAIN = ("model_weights", "clip_manifest", "stage1_captions", "stage2_captions")
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


def with_container(step: str, **container: Any) -> dict[str, Any]:
    """Run configuration that changes the container of a step's pod."""
    return {"execution": {"config": {"per_step_k8s_config": {step: {"container_config": container}}}}}


GPU = with_container("captions", resources={"limits": {"nvidia.com/gpu": "1"}})
"""Run configuration that requests a GPU for captioning, which the sample model does not need."""


def gpus(pod: V1Pod) -> int:
    return int((pod.spec.containers[0].resources.limits or {}).get("nvidia.com/gpu", 0))


def log_messages(pod: V1Pod) -> list[str]:
    """Messages of the JSON lines in a pod's log."""
    lines = kubectl("logs", pod.metadata.name, "--namespace", TEST_NAMESPACE).splitlines()
    return [json.loads(line)["dagster_meta"]["orig_message"] for line in lines if line.startswith("{")]


def assert_complete(cluster: Cluster, shard: str) -> None:
    """Both tables have the manifest's rows, and a caption for every readable window."""
    manifest = read_manifest(cluster.root, shard)
    for table in (STAGE1.name, STAGE2.name):
        rows = read_captions(cluster.root, table, shard)
        assert [row.key for row in rows] == [row.key for row in manifest]
        assert [row.caption is not None for row in rows] == [row.status is Status.OK for row in manifest]


def test_only_captioning_pods_request_a_gpu_and_runs_wait_for_a_slot(cluster: Cluster) -> None:
    run = cluster.launch(*CHAIN, partition=FOLDER_SHARD, run_config=GPU)
    waiting = cluster.launch("stage2_captions", partition=FOLDER_SHARD, run_config=GPU)
    wait_until(lambda: cluster.status(run) is dg.DagsterRunStatus.STARTED, 120, "the first run starts", interval=0.5)
    assert cluster.status(waiting) is dg.DagsterRunStatus.QUEUED
    assert cluster.pods(waiting) == []

    assert cluster.wait_for_end(run) is SUCCESS, cluster.failures(run)

    assert_complete(cluster, FOLDER_SHARD)
    gpus_by_step = {step: [gpus(pod) for pod in cluster.pods(run, step)] for step in (*CHAIN[:2], "captions")}
    assert gpus_by_step == {"model_weights": [0], "clip_manifest": [0], "captions": [1]}
    assert sum(map(gpus, cluster.pods(run))) == 1
    assert cluster.failures(run) == []
    for pod in cluster.pods(run):
        for container in pod.spec.containers:
            assert container.security_context.run_as_user == 10001
            assert container.security_context.read_only_root_filesystem
    for pod in cluster.pods(run, "captions"):
        assert pod.spec.service_account_name == "caption"
        assert not any("token" in mount.name for mount in pod.spec.containers[0].volume_mounts)
        assert any(message.startswith("the engine is ready after") for message in log_messages(pod))
    assert cluster.wait_for_end(waiting) is SUCCESS, cluster.failures(waiting)


@pytest.fixture(scope="module")
def long_shard(cluster: Cluster) -> str:
    """A shard whose captioning takes long enough to be interrupted, with its manifest and weights."""
    run = cluster.launch(*CHAIN[:2], partition=LONG_SHARD)
    assert cluster.wait_for_end(run) is SUCCESS, cluster.failures(run)
    return LONG_SHARD


@pytest.mark.parametrize("grace_seconds", [None, 0])
def test_deleted_captioning_pod_is_replaced_and_continues_from_checkpoints(
    cluster: Cluster, long_shard: str, grace_seconds: int | None
) -> None:
    for table in (STAGE1.name, STAGE2.name):
        cluster.root.remove_folder(f"{table}/shard={long_shard}")
    run = cluster.launch(*CHAIN[2:], partition=long_shard, run_config=GPU)
    pod = cluster.running_pod(run, "captions")
    wait_until(lambda: checkpoints(cluster, long_shard), 240, "a checkpoint exists", interval=0.5)
    values = metrics(pod)

    cluster.core.delete_namespaced_pod(pod.metadata.name, TEST_NAMESPACE, grace_period_seconds=grace_seconds)

    assert values["caption_engine_ready"] == 1
    assert values["caption_windows_in_flight"] > 0
    assert values['caption_windows_total{status="ok"}'] > 0
    assert any(name.startswith("vllm:generation_tokens_total") and value for name, value in values.items())
    assert cluster.wait_for_end(run) is SUCCESS, cluster.failures(run)
    assert len(cluster.failures(run)) == 1
    assert_complete(cluster, long_shard)
    for stage in CHAIN[2:]:
        metadata = cluster.metadata(run, stage)
        assert 0 < metadata["rows_reused"] < metadata["rows_ok"]


def delete(pod: V1Pod) -> None:
    """Delete a pod without a grace period."""
    kubectl("delete", "pod", pod.metadata.name, "--namespace", TEST_NAMESPACE, "--grace-period=0", "--force")


def exhaust_memory(pod: V1Pod) -> None:
    """Fill a pod's memory with processes smaller than its own, so that the kernel kills its own."""
    code = """
import os, time
for _ in range(64):
    if not os.fork():
        memory = b"x" * 2**26
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
    kubectl("exec", pod.metadata.name, "--namespace", TEST_NAMESPACE, "--", sys.executable, "-c", code, check=False)


@pytest.mark.parametrize(
    ("lose", "reason"), [(delete, "interrupted unexpectedly|no active pods"), (exhaust_memory, "OOMKilled")]
)
def test_run_that_loses_its_own_pod_ends_with_its_steps_and_is_retried(
    cluster: Cluster, long_shard: str, lose: Callable[[V1Pod], None], reason: str
) -> None:
    cluster.root.remove_folder(f"{STAGE1.name}/shard={long_shard}")
    run = cluster.launch("stage1_captions", partition=long_shard, run_config=GPU)
    cluster.running_pod(run, "captions")
    [own] = [pod for pod in cluster.pods(run) if "dagster/op" not in pod.metadata.labels]

    lose(own)

    assert cluster.wait_for_end(run) is FAILURE
    assert re.search(reason, cluster.failure(run))
    wait_until(lambda: not cluster.pods(run, "captions"), 180, "the captioning pod is deleted", interval=0.5)
    wait_until(lambda: cluster.retries(run), 60, "the run is retried", interval=0.5)
    [again] = cluster.retries(run)
    assert cluster.wait_for_end(again) is SUCCESS, cluster.failures(again)


def metrics(pod: V1Pod) -> dict[str, float]:
    """Metrics of a captioning pod, as Prometheus scrapes them, by name and labels."""
    [monitor] = [item for item in render("monitoring") if item["kind"] == "PodMonitor"]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    ports = {port.name: port.container_port for port in pod.spec.containers[0].ports}
    with urllib.request.urlopen(f"http://{pod.status.pod_ip}:{ports[endpoint['port']]}/metrics") as response:
        lines = [line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def checkpoints(cluster: Cluster, shard: str) -> list[str]:
    return [name for name in cluster.root.names(checkpoint_folder(shard)) if name.endswith(".parquet")]


def test_step_beyond_its_memory_limit_fails_its_run_with_the_limit_named(cluster: Cluster) -> None:
    small = with_container("clip_manifest", resources={"requests": {"memory": "64Mi"}, "limits": {"memory": "100Mi"}})
    run = cluster.launch("clip_manifest", partition=FOLDER_SHARD, run_config=small)
    assert cluster.wait_for_end(run) is FAILURE
    assert len(cluster.failures(run)) == 4  # the first three are retried
    for failure in cluster.failures(run):
        assert "exceeded its memory limit of 100Mi (OOMKilled, exit code 137)" in failure


def test_missing_image_fails_the_run_and_is_named(cluster: Cluster) -> None:
    missing = with_container("clip_manifest", image="localhost/missing:1", image_pull_policy="Never")
    run = cluster.launch("clip_manifest", partition=FOLDER_SHARD, run_config=missing)
    assert cluster.wait_for_end(run, 120) is FAILURE
    [failure] = cluster.failures(run)
    assert "ErrImageNeverPull" in failure
    assert "localhost/missing:1" in failure
    wait_until(lambda: not cluster.pods(run, "clip_manifest"), 60, "the pod is deleted", interval=0.5)


@pytest.mark.parametrize(
    ("account", "verb", "resource", "allowed"),
    [
        ("dagster", "create", "jobs.batch", True),
        ("dagster", "get", "secrets", False),
        ("dagster", "list", "secrets", False),
        ("dagster", "create", "pods/exec", False),
        ("caption", "get", "secrets", False),
        ("caption", "create", "jobs.batch", False),
        ("caption", "list", "pods", False),
    ],
)
def test_service_accounts_have_only_the_permissions_that_they_need(
    cluster: Cluster, account: str, verb: str, resource: str, allowed: bool
) -> None:
    user = f"--as=system:serviceaccount:{TEST_NAMESPACE}:{account}"
    answer = kubectl("auth", "can-i", verb, resource, user, "--namespace", TEST_NAMESPACE, check=False)
    assert answer.strip() == ("yes" if allowed else "no")
