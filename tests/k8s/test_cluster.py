"""The life of runs on a real cluster. One GPU, or what passes for it, and one slot in the pool."""

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

from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.sample.shards import FOLDER_SHARD
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.tables import Status, read_captions, read_manifest
from tests.k8s.cluster import Cluster, kubectl, until
from tests.k8s.conftest import LONG_SHARD
from tests.k8s.manifests import TEST_NAMESPACE, render

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(900)]

CHAIN = ("model_weights", "clip_manifest", "stage1_captions", "stage2_captions")
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


def of_step(step: str, **container: Any) -> dict[str, Any]:
    """Run configuration that changes the container of one step's pod."""
    return {"execution": {"config": {"per_step_k8s_config": {step: {"container_config": container}}}}}


GPU = of_step("captions", resources={"limits": {"nvidia.com/gpu": "1"}})
"""The sample model needs no GPU; here its pod asks for one."""


def gpus(pod: V1Pod) -> int:
    return int((pod.spec.containers[0].resources.limits or {}).get("nvidia.com/gpu", 0))


def logged(pod: V1Pod) -> list[str]:
    """What a pod's log has to say as JSON, for collectors of logs."""
    lines = kubectl("logs", pod.metadata.name, "--namespace", TEST_NAMESPACE).splitlines()
    return [json.loads(line)["dagster_meta"]["orig_message"] for line in lines if line.startswith("{")]


def assert_whole(cluster: Cluster, shard: str) -> None:
    """Both tables have the rows of the manifest, and every window its caption."""
    manifest = read_manifest(cluster.root, shard)
    for table in (STAGE1.name, STAGE2.name):
        rows = read_captions(cluster.root, table, shard)
        assert [row.key for row in rows] == [row.key for row in manifest]
        assert [row.caption is not None for row in rows] == [row.status is Status.OK for row in manifest]


def test_the_chain_runs_in_pods_of_which_the_captioning_one_alone_asks_for_a_gpu(cluster: Cluster) -> None:
    run = cluster.launch(*CHAIN, partition=FOLDER_SHARD, run_config=GPU)
    waiting = cluster.launch("stage2_captions", partition=FOLDER_SHARD, run_config=GPU)
    until(lambda: cluster.status(run) is dg.DagsterRunStatus.STARTED, 120, "the first run starts")
    assert cluster.status(waiting) is dg.DagsterRunStatus.QUEUED
    assert cluster.pods(waiting) == []

    assert cluster.finish(run) is SUCCESS, cluster.failures(run)

    assert_whole(cluster, FOLDER_SHARD)
    asked = {step: [gpus(pod) for pod in cluster.pods(run, step)] for step in (*CHAIN[:2], "captions")}
    assert asked == {"model_weights": [0], "clip_manifest": [0], "captions": [1]}
    assert sum(map(gpus, cluster.pods(run))) == 1
    assert cluster.failures(run) == []
    for pod in cluster.pods(run):
        for container in pod.spec.containers:
            assert container.security_context.run_as_user == 10001
            assert container.security_context.read_only_root_filesystem
    for pod in cluster.pods(run, "captions"):
        assert pod.spec.service_account_name == "caption"
        assert not any("token" in mount.name for mount in pod.spec.containers[0].volume_mounts)
        assert any(message.startswith("the engine is ready after") for message in logged(pod))
    assert cluster.finish(waiting) is SUCCESS, cluster.failures(waiting)


@pytest.fixture(scope="module")
def long_shard(cluster: Cluster) -> str:
    """A shard that takes long enough to be interrupted, ready to be captioned."""
    run = cluster.launch(*CHAIN[:2], partition=LONG_SHARD)
    assert cluster.finish(run) is SUCCESS, cluster.failures(run)
    return LONG_SHARD


@pytest.mark.parametrize("grace_seconds", [None, 0])
def test_a_captioning_pod_that_is_taken_away_is_replaced_and_goes_on_where_it_was(
    cluster: Cluster, long_shard: str, grace_seconds: int | None
) -> None:
    for table in (STAGE1.name, STAGE2.name):
        cluster.root.remove_folder(f"{table}/shard={long_shard}")
    run = cluster.launch(*CHAIN[2:], partition=long_shard, run_config=GPU)
    pod = cluster.running_pod(run, "captions")
    until(lambda: checkpoints(cluster, long_shard), 240, "there is a checkpoint")
    told = metrics(pod)

    cluster.core.delete_namespaced_pod(pod.metadata.name, TEST_NAMESPACE, grace_period_seconds=grace_seconds)

    assert told["caption_engine_ready"] == 1
    assert told["caption_windows_in_flight"] > 0
    assert told['caption_windows_total{status="ok"}'] > 0
    assert any(name.startswith("vllm:generation_tokens_total") and value for name, value in told.items())
    assert cluster.finish(run) is SUCCESS, cluster.failures(run)
    assert len(cluster.failures(run)) == 1
    assert_whole(cluster, long_shard)
    for stage in CHAIN[2:]:
        told = cluster.metadata(run, stage)
        assert 0 < told["rows_reused"] < told["rows_ok"]


def delete(pod: V1Pod) -> None:
    """Take a pod away at once; its process may still have the second that it takes to say so."""
    kubectl("delete", "pod", pod.metadata.name, "--namespace", TEST_NAMESPACE, "--grace-period=0", "--force")


def exhaust(pod: V1Pod) -> None:
    """Fill the pod's memory with processes that are all smaller than its own, which is killed for that."""
    code = """
import os, time
for _ in range(64):
    if not os.fork():
        taken = b"x" * 2**26
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
    kubectl("exec", pod.metadata.name, "--namespace", TEST_NAMESPACE, "--", sys.executable, "-c", code, check=False)


@pytest.mark.parametrize(
    ("end", "reason"), [(delete, "interrupted unexpectedly|no active pods"), (exhaust, "OOMKilled")]
)
def test_the_steps_of_a_run_whose_own_pod_is_lost_end_with_it_and_the_run_is_made_again(
    cluster: Cluster, long_shard: str, end: Callable[[V1Pod], None], reason: str
) -> None:
    cluster.root.remove_folder(f"{STAGE1.name}/shard={long_shard}")
    run = cluster.launch("stage1_captions", partition=long_shard, run_config=GPU)
    cluster.running_pod(run, "captions")
    [own] = [pod for pod in cluster.pods(run) if "dagster/op" not in pod.metadata.labels]

    end(own)

    assert cluster.finish(run) is FAILURE
    assert re.search(reason, cluster.reason(run))
    until(lambda: not cluster.pods(run, "captions"), 180, "the captioning pod is gone")
    [again] = until(lambda: cluster.retries(run), 60, "the run is made again")
    assert cluster.finish(again) is SUCCESS, cluster.failures(again)


def metrics(pod: V1Pod) -> dict[str, float]:
    """What Prometheus would be told by a captioning pod, by name and labels."""
    [monitor] = [item for item in render("monitoring") if item["kind"] == "PodMonitor"]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    ports = {port.name: port.container_port for port in pod.spec.containers[0].ports}
    with urllib.request.urlopen(f"http://{pod.status.pod_ip}:{ports[endpoint['port']]}/metrics") as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def checkpoints(cluster: Cluster, shard: str) -> list[str]:
    return [name for name in cluster.root.names(checkpoint_folder(shard)) if name.endswith(".parquet")]


def test_a_step_that_takes_too_much_memory_fails_its_run_and_says_so(cluster: Cluster) -> None:
    small = of_step("clip_manifest", resources={"requests": {"memory": "64Mi"}, "limits": {"memory": "100Mi"}})
    run = cluster.launch("clip_manifest", partition=FOLDER_SHARD, run_config=small)
    assert cluster.finish(run) is FAILURE
    assert len(cluster.failures(run)) == 4  # three of which were tried again
    for failure in cluster.failures(run):
        assert "exceeded its memory limit of 100Mi (OOMKilled, exit code 137)" in failure


def test_a_missing_image_fails_the_run_and_is_named(cluster: Cluster) -> None:
    missing = of_step("clip_manifest", image="localhost/missing:1", image_pull_policy="Never")
    run = cluster.launch("clip_manifest", partition=FOLDER_SHARD, run_config=missing)
    assert cluster.finish(run, 120) is FAILURE
    [failure] = cluster.failures(run)
    assert "ErrImageNeverPull" in failure
    assert "localhost/missing:1" in failure
    until(lambda: not cluster.pods(run, "clip_manifest"), 60, "the pod that cannot start is gone")


@pytest.mark.parametrize(
    ("account", "verb", "what", "allowed"),
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
def test_accounts_may_do_what_they_need_alone(
    cluster: Cluster, account: str, verb: str, what: str, allowed: bool
) -> None:
    who = f"--as=system:serviceaccount:{TEST_NAMESPACE}:{account}"
    answer = kubectl("auth", "can-i", verb, what, who, "--namespace", TEST_NAMESPACE, check=False)
    assert answer.strip() == ("yes" if allowed else "no")
