"""The project on a real cluster: its configuration applied, Dagster's daemon and code server on this machine, an S3
server that pods reach, and runs and steps in pods.

Pods run this machine's own Python, from host folders that they claim as volumes (`k8s/overlays/test-cluster`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tests.store.server import S3Server, moto_server

PROJECT = Path(__file__).parents[2]
IMAGE = "localhost/host:1"
"""An empty system, into which the host's folders are mounted."""
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
"""The mutation that the UI sends for a click on Materialize."""


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for a true value, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)
    return value


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running deployment."""

    instance: dg.DagsterInstance
    workspace: WorkspaceProcessContext
    root: Root
    core: client.CoreV1Api

    def launch(self, *assets: str, partition: str | None = None, run_config: Mapping[str, Any] | None = None) -> str:
        """Have assets materialized as by a click; returns the run's id."""
        selection = [{"path": [asset]} for asset in assets]
        job = {"repositoryName": "__repository__", "repositoryLocationName": "caption-assets"}
        variables = {
            "job": {**job, "jobName": "__ASSET_JOB", "assetSelection": selection, "assetCheckSelection": []},
            "tags": [{"key": "dagster/partition", "value": partition}] if partition else [],
            "config": dict(run_config or {}),
        }
        answer = execute_query(self.workspace, LAUNCH, variables)
        assert "run" in answer.get("data", {}).get("launchPipelineExecution", {}), answer
        return str(answer["data"]["launchPipelineExecution"]["run"]["runId"])

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def finish(self, run_id: str, seconds: float = 420) -> dg.DagsterRunStatus:
        """Wait for a run's end."""
        until(lambda: self.status(run_id) in FINISHED, seconds, f"run {run_id} ends")
        return self.status(run_id)

    def retries(self, run_id: str) -> list[str]:
        """The runs that were launched in place of one that was lost."""
        found = self.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run_id}))
        return [run.run_id for run in found]

    def pods(self, run_id: str, step: str | None = None) -> list[V1Pod]:
        """The run's pods, or those of one of its steps."""
        selector = f"dagster/run-id={run_id}" + (f",dagster/op={step}" if step else "")
        return list(self.core.list_namespaced_pod(TEST_NAMESPACE, label_selector=selector).items)

    def running_pod(self, run_id: str, step: str, seconds: float = 240) -> V1Pod:
        """A step's pod, once it runs."""
        return until(
            lambda: next((pod for pod in self.pods(run_id, step) if pod.status.phase == "Running"), None),
            seconds,
            f"a pod of {step} runs",
        )

    def failures(self, run_id: str) -> list[str]:
        """What the run says of the steps that failed or are tried again."""
        kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY}
        told = []
        for record in self.instance.get_records_for_run(run_id, of_type=kinds).records:
            event = record.event_log_entry.dagster_event
            assert event is not None
            data: Any = event.event_specific_data
            told.append(f"{event.message} {data.error.message if data.error else ''}")
        return told

    def reason(self, run_id: str) -> str:
        """What a run that failed says of itself."""
        [record] = self.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
        event = record.event_log_entry.dagster_event
        assert event is not None
        return event.message or ""

    def metadata(self, run_id: str, asset: str) -> dict[str, Any]:
        """What a run recorded of an asset."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=10).records
        [record] = [record for record in records if record.run_id == run_id]
        assert record.asset_materialization is not None
        return {name: value.value for name, value in record.asset_materialization.metadata.items()}


FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@contextmanager
def deploy(folder: Path, shards: Path, settings: Mapping[str, str]) -> Iterator[Cluster]:
    """The deployment, with everything that it wrote to the cluster removed afterwards.

    Args:
        folder: for state; pods get a part of it.
        shards: what lies in the source.
        settings: of the project, besides those of the configuration.
    """
    assert os.environ.get("KUBECONFIG"), "no cluster is named: set KUBECONFIG, or run `make test-k8s`"
    config.load_kube_config()
    core = client.CoreV1Api()
    _check_nodes(core)
    with ExitStack() as stack:
        stack.enter_context(_writable_by_all())
        store = stack.enter_context(moto_server(_own_address()))
        environment = _environment(store, settings)
        patch = stack.enter_context(_variables(environment))
        _fill(shards)
        state = folder / "state"
        for part in ("home", "cache"):
            (state / part).mkdir(parents=True)
        stack.callback(_remove)
        _remove()
        _apply(_objects(state, environment, core))
        home = state / "home"
        stack.enter_context(_open_to_pods(home))
        (home / "dagster.yaml").write_text(yaml.safe_dump(_dagster_yaml(home, store)))
        port = stack.enter_context(_servers(home, patch))
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        # On a new instance the daemon applies the default limit from its second look at the queue on.
        instance.event_log_storage.set_concurrency_slots("gpu", 1)
        target = GrpcServerTarget("127.0.0.1", port=port, socket=None, location_name="caption-assets")
        workspace = stack.enter_context(WorkspaceProcessContext(instance, target))
        yield Cluster(instance, workspace, Root.open(environment["CAPTION_ROOT"]), core)


def _check_nodes(core: client.CoreV1Api) -> None:
    """Pods are to run this machine's Python in an image that holds nothing: any other cluster fails at once."""
    for node in core.list_node().items:
        images = {name for image in node.status.images or [] for name in image.names or []}
        assert IMAGE in images, (
            f"node {node.metadata.name} has no image {IMAGE}: KUBECONFIG names another cluster than ../shared/k8s makes"
        )


@contextmanager
def _writable_by_all() -> Iterator[None]:
    """Files that this process makes can be written by the user of the pods."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _open_to_pods(home: Path) -> Iterator[None]:
    """Let the pods' user write what SQLite makes, which others may only read. The daemon makes runs as well."""
    ended = threading.Event()

    def open_all() -> None:
        while not ended.wait(0.2):
            for path in home.rglob("*"):
                with suppress(FileNotFoundError):  # journals come and go
                    path.chmod(0o777)

    thread = threading.Thread(target=open_all, name="open to pods", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _own_address() -> str:
    """This machine's address on the way to the cluster."""
    server = urlparse(client.Configuration.get_default_copy().host)
    with socket.create_connection((server.hostname, server.port)) as connection:
        return str(connection.getsockname()[0])


def _environment(store: S3Server, settings: Mapping[str, str]) -> dict[str, str]:
    """What the configuration's settings are for this deployment, and what else tells pods where they are."""
    [given] = [item["data"] for item in render("overlays/test-cluster") if item["kind"] == "ConfigMap"]
    return {
        **given,
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


def _fill(shards: Path) -> None:
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
"""Folders of this machine that pods see, by the overlay's names."""


def _objects(state: Path, environment: Mapping[str, str], core: client.CoreV1Api) -> Iterator[Object]:
    """What is applied: the overlay, with this machine's folders and this deployment's settings, and keys."""
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
    """For pods that launch others: dagster-k8s tells them to look for the cluster as their own launcher did."""
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
    """What kubectl says."""
    done = subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


def _apply(objects: Iterator[Object]) -> None:
    kubectl("apply", "--namespace", TEST_NAMESPACE, "--filename", "-", text=yaml.safe_dump_all(list(objects)))


def _remove() -> None:
    kubectl("delete", "namespace", TEST_NAMESPACE, "--ignore-not-found", "--timeout=180s")
    others = [item for item in render("overlays/test-cluster") if "namespace" not in item["metadata"]]
    kubectl("delete", "--ignore-not-found", "--filename", "-", text=yaml.safe_dump_all(others))


def _dagster_yaml(home: Path, store: S3Server) -> Object:
    """That of the values, with SQLite in place of PostgreSQL, and one captioning run at once."""
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
    """A code server and Dagster's daemon on this machine; the port of the former."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
                until(lambda: _listens(port), 60, "the code server listens")
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
