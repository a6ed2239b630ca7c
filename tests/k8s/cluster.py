"""Deployment of the project on a real cluster, with runs and steps in pods.

Dagster's daemon, its code server and an S3 server run on this machine. Pods run this machine's Python from host
folders, which they claim as volumes (`k8s/overlays/test-cluster`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlparse

import boto3
import dagster as dg
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster_graphql.cli import execute_query
from kubernetes import client, config
from kubernetes.client import V1Pod

from caption_assets.store.root import Root
from tests.k8s.chart import instance_config
from tests.k8s.manifests import TEST_NAMESPACE, VALUES, Object, render
from tests.processes import free_port, wait_until
from tests.store.server import S3Server, moto_server

PROJECT = Path(__file__).parents[2]
IMAGE = "localhost/host:1"
"""An empty image; the host's folders are mounted into its containers."""
BUCKET = "captions"
LAUNCH = """
mutation($job: JobOrPipelineSelector!, $tags: [ExecutionTag!]!, $config: RunConfigData!) {
  launchPipelineExecution(
    executionParams: {selector: $job, runConfigData: $config, executionMetadata: {tags: $tags}}
  ) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on Error { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
"""The mutation that the UI's Materialize button sends."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running deployment."""

    instance: dg.DagsterInstance
    workspace: WorkspaceProcessContext
    root: Root
    core: client.CoreV1Api

    def launch(self, *assets: str, partition: str | None = None, run_config: Mapping[str, Any] | None = None) -> str:
        """Launch a run as the Materialize button does; returns its id."""
        selection = [{"path": [asset]} for asset in assets]
        job = {"repositoryName": "__repository__", "repositoryLocationName": "caption-assets"}
        variables = {
            "job": {**job, "jobName": "__ASSET_JOB", "assetSelection": selection, "assetCheckSelection": []},
            "tags": [{"key": "dagster/partition", "value": partition}] if partition else [],
            "config": dict(run_config or {}),
        }
        response = execute_query(self.workspace, LAUNCH, variables)
        assert "run" in response.get("data", {}).get("launchPipelineExecution", {}), response
        return str(response["data"]["launchPipelineExecution"]["run"]["runId"])

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def wait_for_end(self, run_id: str, seconds: float = 420) -> dg.DagsterRunStatus:
        """Wait until a run ends; returns its status."""
        wait_until(lambda: self.status(run_id) in FINISHED, seconds, f"run {run_id} ends", interval=0.5)
        return self.status(run_id)

    def retries(self, run_id: str) -> list[str]:
        """Ids of the runs that retry a lost run."""
        found = self.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run_id}))
        return [run.run_id for run in found]

    def pods(self, run_id: str, step: str | None = None) -> list[V1Pod]:
        """Pods of a run, or of one of its steps."""
        selector = f"dagster/run-id={run_id}" + (f",dagster/op={step}" if step else "")
        return list(self.core.list_namespaced_pod(TEST_NAMESPACE, label_selector=selector).items)

    def running_pod(self, run_id: str, step: str, seconds: float = 240) -> V1Pod:
        """Wait until a step's pod runs; returns the pod."""

        def running() -> list[V1Pod]:
            return [pod for pod in self.pods(run_id, step) if pod.status.phase == "Running"]

        wait_until(running, seconds, f"a pod of {step} runs", interval=0.5)
        return running()[0]

    def failures(self, run_id: str) -> list[str]:
        """Messages of the run's failed and retried steps."""
        kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY}
        messages = []
        for record in self.instance.get_records_for_run(run_id, of_type=kinds).records:
            event = record.event_log_entry.dagster_event
            assert event is not None
            data: Any = event.event_specific_data
            messages.append(f"{event.message} {data.error.message if data.error else ''}")
        return messages

    def failure(self, run_id: str) -> str:
        """Message of a failed run."""
        [record] = self.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
        event = record.event_log_entry.dagster_event
        assert event is not None
        return event.message or ""

    def metadata(self, run_id: str, asset: str) -> dict[str, Any]:
        """Metadata that a run recorded for an asset."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=10).records
        [record] = [record for record in records if record.run_id == run_id]
        assert record.asset_materialization is not None
        return {name: value.value for name, value in record.asset_materialization.metadata.items()}


FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@contextmanager
def deploy(folder: Path, shards: Path, settings: Mapping[str, str]) -> Iterator[Cluster]:
    """Deploy the project, and afterwards delete everything that it wrote to the cluster.

    Args:
        folder: folder for state; a part of it is mounted into pods.
        shards: folder of the source's shards.
        settings: settings of the project in addition to those of the ConfigMap.
    """
    assert os.environ.get("KUBECONFIG"), "KUBECONFIG is unset: set it, or run `make test-k8s`"
    config.load_kube_config()
    core = client.CoreV1Api()
    _check_nodes(core)
    with ExitStack() as stack:
        stack.enter_context(_files_writable_by_all())
        store = stack.enter_context(moto_server(_own_address()))
        environment = _environment(store, settings)
        patch = stack.enter_context(_variables(environment))
        _upload(shards)
        state = folder / "state"
        for part in ("home", "cache"):
            (state / part).mkdir(parents=True)
        stack.callback(_delete)
        _delete()
        _apply(_objects(state, environment, core))
        home = state / "home"
        stack.enter_context(_open_databases(home))
        (home / "dagster.yaml").write_text(yaml.safe_dump(_dagster_yaml(home, store)))
        port = stack.enter_context(_servers(home, patch))
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        # On a new instance the daemon applies the default limit only from its second iteration on.
        instance.event_log_storage.set_concurrency_slots("gpu", 1)
        target = GrpcServerTarget("127.0.0.1", port=port, socket=None, location_name="caption-assets")
        workspace = stack.enter_context(WorkspaceProcessContext(instance, target))
        yield Cluster(instance, workspace, Root.open(environment["CAPTION_ROOT"]), core)


def _check_nodes(core: client.CoreV1Api) -> None:
    """Fail if a node lacks the empty image: on any other cluster pods could not run this machine's Python."""
    for node in core.list_node().items:
        images = {name for image in node.status.images or [] for name in image.names or []}
        assert IMAGE in images, (
            f"node {node.metadata.name} has no image {IMAGE}: set KUBECONFIG to the cluster that ../shared/k8s creates"
        )


@contextmanager
def _files_writable_by_all() -> Iterator[None]:
    """Let the pods' user write the files that this process creates."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _open_databases(home: Path) -> Iterator[None]:
    """Let the pods' user write SQLite's files, which SQLite creates read-only for others whenever a run starts."""
    stopped = threading.Event()

    def open_all() -> None:
        while not stopped.wait(0.2):
            for path in home.rglob("*"):
                with suppress(FileNotFoundError):  # journals come and go
                    path.chmod(0o777)

    thread = threading.Thread(target=open_all, name="open databases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _own_address() -> str:
    """This machine's address in the cluster's network."""
    server = urlparse(client.Configuration.get_default_copy().host)
    with socket.create_connection((server.hostname, server.port)) as connection:
        return str(connection.getsockname()[0])


def _environment(store: S3Server, settings: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of pods: the ConfigMap's settings, the S3 server and the deployment's settings."""
    [config_map] = [item["data"] for item in render("overlays/test-cluster") if item["kind"] == "ConfigMap"]
    return {
        **config_map,
        "CAPTION_ROOT": f"s3://{BUCKET}",
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": store.key,
        "AWS_SECRET_ACCESS_KEY": store.secret,
        "AWS_EC2_METADATA_DISABLED": "true",
        **settings,
    }


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[dict[str, str]]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _upload(shards: Path) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    for path in filter(Path.is_file, shards.rglob("*")):
        s3.upload_file(str(path), BUCKET, f"shards/{path.relative_to(shards)}")


FOLDERS = {
    "usr": Path("/usr"),
    "alternatives": Path("/etc/alternatives"),
    "certificates": Path("/etc/ssl"),
    "python": Path(sys.base_prefix),
    "environment": Path(sys.prefix),
    "project": PROJECT,
}
"""Folders of this machine that are mounted into pods, by their names in the overlay."""


def _objects(state: Path, environment: Mapping[str, str], core: client.CoreV1Api) -> Iterator[Object]:
    """Objects to apply: the overlay with this machine's folders and the deployment's settings, and its secrets."""
    paths = {name: str(path) for name, path in {**FOLDERS, "cache": state}.items()}
    text = Template(yaml.safe_dump_all(render("overlays/test-cluster"))).substitute(paths)
    for item in yaml.safe_load_all(text):
        if item["kind"] == "ConfigMap":
            item["data"] = {name: value for name, value in environment.items() if "KEY" not in name}
        yield item
    keys = {name: value for name, value in environment.items() if "KEY" in name}
    yield {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "caption-secrets"}, "stringData": keys}
    address = core.read_namespaced_service("kubernetes", "default").spec.cluster_ip
    yield {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kubeconfig"},
        "data": {"config": yaml.safe_dump(_kubeconfig(address))},
    }


def _kubeconfig(address: str) -> Object:
    """A kubeconfig for pods that launch other pods: dagster-k8s configures their clients like the launcher's."""
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "here", "cluster": {"server": f"https://{address}", "certificate-authority": f"{account}/ca.crt"}}
        ],
        "users": [{"name": "pod", "user": {"tokenFile": f"{account}/token"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "pod"}}],
        "current-context": "here",
    }


def kubectl(*words: str, text: str | None = None, check: bool = True) -> str:
    """Output of kubectl."""
    done = subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


def _apply(objects: Iterator[Object]) -> None:
    kubectl("apply", "--namespace", TEST_NAMESPACE, "--filename", "-", text=yaml.safe_dump_all(list(objects)))


def _delete() -> None:
    kubectl("delete", "namespace", TEST_NAMESPACE, "--ignore-not-found", "--timeout=180s")
    others = [item for item in render("overlays/test-cluster") if "namespace" not in item["metadata"]]
    kubectl("delete", "--ignore-not-found", "--filename", "-", text=yaml.safe_dump_all(others))


def _dagster_yaml(home: Path, store: S3Server) -> Object:
    """The values' dagster.yaml, but with SQLite instead of PostgreSQL, and one captioning run at a time."""
    parts = instance_config(VALUES)
    for part in ("run_storage", "event_log_storage", "schedule_storage", "scheduler"):
        del parts[part]
    launcher = parts["run_launcher"]["config"]
    for name in ("postgres_password_secret", "load_incluster_config"):
        del launcher[name]
    claims = {f"host-{name}": path for name, path in FOLDERS.items()}
    return {
        **parts,
        "storage": {"sqlite": {"base_dir": str(home)}},
        "compute_logs": {
            **parts["compute_logs"],
            "config": {**parts["compute_logs"]["config"], "bucket": BUCKET, "endpoint_url": store.endpoint},
        },
        "concurrency": {**parts["concurrency"], "pools": {"default_limit": 1, "granularity": "run"}},
        "run_monitoring": {**parts["run_monitoring"], "poll_interval_seconds": 10},
        "run_launcher": {
            **parts["run_launcher"],
            "config": {
                **launcher,
                "load_incluster_config": False,
                "job_namespace": TEST_NAMESPACE,
                "run_k8s_config": {
                    **launcher["run_k8s_config"],
                    "pod_spec_config": {"priorityClassName": "captioning-test"},
                    "job_spec_config": {"ttlSecondsAfterFinished": 60},
                },
                "dagster_home": str(home),
                "job_image": IMAGE,
                "env_vars": [
                    f"PATH={sys.prefix}/bin:/usr/bin:/bin",
                    f"PYTHONPATH={PROJECT}",
                    "HOME=/tmp",
                    "USER=caption",
                    "KUBECONFIG=/etc/kube/config",
                ],
                "volumes": [
                    *(volume for volume in launcher["volumes"] if volume["name"] != "cache"),
                    {"name": "cache", "persistentVolumeClaim": {"claimName": "caption-cache"}},
                    {"name": "kubeconfig", "configMap": {"name": "kubeconfig"}},
                    *({"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims),
                ],
                "volume_mounts": [
                    *(mount for mount in launcher["volume_mounts"] if mount["name"] != "cache"),
                    {"name": "cache", "mountPath": "/cache", "subPath": "cache"},
                    {"name": "cache", "mountPath": str(home), "subPath": "home"},
                    {"name": "kubeconfig", "mountPath": "/etc/kube"},
                    *({"name": claim, "mountPath": str(path), "readOnly": True} for claim, path in claims.items()),
                ],
            },
        },
    }


@contextmanager
def _servers(home: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """Run a code server and Dagster's daemon on this machine; yields the code server's port."""
    port = free_port()
    location = {"host": "127.0.0.1", "port": port, "location_name": "caption-assets"}
    workspace = home / "workspace.yaml"
    workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": location}]}))
    api = ["dagster", "api", "grpc", "-m", "caption_assets.definitions", "-h", "127.0.0.1", "-p", str(port)]
    commands: Sequence[Sequence[str]] = (api, ["dagster._daemon", "run", "-w", str(workspace)])
    started = []
    try:
        for name, command in zip(("code-server", "daemon"), commands, strict=True):
            with (home.parent.parent / f"{name}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *command],
                        cwd=PROJECT,
                        env={**environment, "DAGSTER_HOME": str(home), "PYTHONPATH": str(PROJECT)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
            if name == "code-server":
                wait_until(lambda: _listens(port), 60, "the code server listens")
        yield port
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # Dagster ignores SIGTERM where it was started with SIGINT ignored
                process.kill()
                process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
