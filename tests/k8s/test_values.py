import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.code_pointer import ModuleCodePointer, load_python_module
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import get_user_defined_k8s_config
from kubernetes_validate import latest_version, validate

from caption_assets import __version__
from caption_assets.definitions import build_definitions
from caption_assets.environment import PREFIX, unknown_settings
from caption_assets.kubernetes.pods import (
    CAPTION_STEP,
    JOB_TTL_SECONDS,
    VERSION_VARIABLE,
    caption_run_config,
    step_pod,
)
from caption_assets.settings import Settings
from tests.k8s.chart import instance_components, instance_config, job, server_pods
from tests.k8s.manifests import K8S, VALUES, Object, named, references, render, settings_of, violations

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

PROJECT = K8S.parent
GUIDE = PROJECT / "docs" / "how-to" / "kubernetes.md"
STEPS = ("model_weights", "clip_manifest", "stage1_captions")
SERVER_IMAGES = [
    VALUES["dagsterWebserver"]["image"],
    VALUES["dagsterDaemon"]["image"],
    VALUES["dagster-user-deployments"]["deployments"][0]["image"],
]


class ApiServer(ThreadingHTTPServer):
    """A Kubernetes API server on loopback that stores the objects which clients create."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ApiHandler)
        self.created: list[Object] = []

    def kubeconfig(self) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }


class ApiHandler(BaseHTTPRequestHandler):
    """Responds to a creation with the created object, as Kubernetes does."""

    server: ApiServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.created.append(json.loads(body))
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    server = ApiServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def launcher(api_server: ApiServer, tmp_path: Path) -> K8sRunLauncher:
    """The launcher of the values, outside a cluster."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(api_server.kubeconfig()))
    config = instance_config(VALUES)["run_launcher"]["config"]
    return K8sRunLauncher(**{**config, "load_incluster_config": False, "kubeconfig_file": str(kubeconfig)})


def jobs(launcher: K8sRunLauncher) -> Iterator[tuple[str, Object]]:
    """The Jobs of a run and of each of its steps, with the settings of the ConfigMap."""
    yield "run", job(launcher, "slim")
    settings = settings_of("base")
    definitions = build_definitions(settings)
    sized = caption_run_config(settings, 10, 57_600)["execution"]["config"]["per_step_k8s_config"]["captions"]
    for asset in STEPS:
        op = definitions.resolve_assets_def(dg.AssetKey(asset)).op
        layers = [step_pod(settings), get_user_defined_k8s_config(op.tags).to_dict()]
        yield asset, job(launcher, "slim", *layers, *([sized] if op.name == CAPTION_STEP else []))


def test_rendered_dagster_yaml_is_valid(tmp_path: Path) -> None:
    for component in instance_components(VALUES, tmp_path):
        kind: Any = getattr(load_python_module(component.module_name, None), component.class_name)
        result = validate_config(kind.config_type(), component.config_dict)
        assert result.success, f"{component.class_name}: {result.errors}"


def test_local_and_rendered_dagster_yaml_agree() -> None:
    local, cluster = yaml.safe_load((PROJECT / "dagster.yaml").read_text()), instance_config(VALUES)
    assert local["telemetry"] == cluster["telemetry"]
    assert local["run_coordinator"]["class"] == cluster["run_coordinator"]["class"]
    # The number of retries may differ: on one machine no run loses its pod.
    for key in ("enabled", "retry_on_asset_or_op_failure"):
        assert local["run_retries"][key] == cluster["run_retries"][key]


def test_lost_run_frees_its_slot_and_is_not_resumed() -> None:
    monitoring = instance_config(VALUES)["run_monitoring"]
    assert monitoring["enabled"]
    assert monitoring["max_resume_run_attempts"] == 0
    assert monitoring["free_slots_after_run_end_seconds"] == 300


def test_pool_limit_is_within_the_gpu_quota() -> None:
    quota = named(render("base"), "ResourceQuota")["captions"]["spec"]["hard"]
    assert VALUES["concurrency"]["pools"]["defaultLimit"] <= int(quota["requests.nvidia.com/gpu"])


def test_pods_meet_the_restricted_standard(launcher: K8sRunLauncher) -> None:
    for name, pod in server_pods(VALUES).items():
        assert list(violations(pod)) == [], name
    for name, built in jobs(launcher):
        assert list(violations(built["spec"]["template"]["spec"])) == [], name


def test_unrestricted_pod_is_detected() -> None:
    assert "c: not root" in violations({"containers": [{"name": "c"}]})


def test_jobs_are_valid_in_the_newest_kubernetes(launcher: K8sRunLauncher) -> None:
    for _, built in jobs(launcher):
        validate(built, latest_version(), strict=True)


def test_objects_that_pods_refer_to_are_in_the_base_or_the_guide(launcher: K8sRunLauncher) -> None:
    available = {(item["kind"], item["metadata"]["name"]) for item in render("base")}
    available |= {("Secret", name) for name in re.findall(r"create secret generic ([a-z-]+)", GUIDE.read_text())}
    pods = [*server_pods(VALUES).values(), *(built["spec"]["template"]["spec"] for _, built in jobs(launcher))]
    assert {reference for pod in pods for reference in references(pod)} <= available


def test_captioning_pods_are_selected_by_their_steps_name() -> None:
    objects = [*render("base"), *render("monitoring")]
    step = build_definitions(Settings()).resolve_assets_def(dg.AssetKey("stage1_captions")).op.name
    label = {"dagster/op": step}  # dagster-k8s labels every pod of a step with it
    assert named(objects, "PodDisruptionBudget")["captioning"]["spec"]["selector"]["matchLabels"] == label
    assert named(objects, "NetworkPolicy")["metrics"]["spec"]["podSelector"]["matchLabels"] == label
    assert named(objects, "PodMonitor")["captioning"]["spec"]["selector"]["matchLabels"] == label


def test_runs_have_the_launching_account_and_steps_one_without_permissions(
    launcher: K8sRunLauncher,
) -> None:
    pods = {name: built["spec"]["template"]["spec"] for name, built in jobs(launcher)}
    assert pods.pop("run")["serviceAccountName"] == "dagster"
    assert {(pod["serviceAccountName"], pod["automountServiceAccountToken"]) for pod in pods.values()} == {
        ("caption", False)
    }


def test_only_the_captioning_step_has_the_gpu_image_and_a_gpu(launcher: K8sRunLauncher) -> None:
    for name, built in jobs(launcher):
        [container] = built["spec"]["template"]["spec"]["containers"]
        captions = name == "stage1_captions"
        assert ("caption-assets-gpu" in container["image"]) is captions
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is captions


def test_projects_own_settings_take_precedence_over_shared_ones(launcher: K8sRunLauncher) -> None:
    [addition] = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    server = yaml.safe_load(addition)
    [context] = server["env"]
    assert context["name"] == "DAGSTER_CONTAINER_CONTEXT"
    built = job(launcher, "slim", step_pod(settings_of("base")), code_server=json.loads(context["value"]))
    [container] = built["spec"]["template"]["spec"]["containers"]
    maps = [entry["configMapRef"] for entry in container["envFrom"] if "configMapRef" in entry]
    assert maps == server["envConfigMaps"]  # Kubernetes: for equal keys the last source takes precedence


def test_schedules_pod_size_is_added_to_the_captioning_pod(launcher: K8sRunLauncher) -> None:
    [container] = dict(jobs(launcher))["stage1_captions"]["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert environment[VERSION_VARIABLE] == __version__
    assert environment["CAPTION_DECODE_WORKERS"] == "1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_captioning_pod_declares_the_port_that_prometheus_scrapes(launcher: K8sRunLauncher) -> None:
    [endpoint] = named(render("monitoring"), "PodMonitor")["captioning"]["spec"]["podMetricsEndpoints"]
    [container] = dict(jobs(launcher))["stage1_captions"]["spec"]["template"]["spec"]["containers"]
    declared = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert declared[endpoint["port"]] == settings_of("base").metrics_port


def test_running_pods_are_not_evicted_and_finished_ones_are_deleted(launcher: K8sRunLauncher) -> None:
    for name, built in jobs(launcher):
        assert built["spec"]["template"]["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }, name
    seconds = {name: built["spec"]["ttlSecondsAfterFinished"] for name, built in jobs(launcher)}
    assert seconds.pop("run") == 300
    assert set(seconds.values()) == {JOB_TTL_SECONDS}  # deleted together with the run's pod


def test_disruption_budget_of_runs_selects_launched_runs(
    launcher: K8sRunLauncher, api_server: ApiServer, instance: dg.DagsterInstance
) -> None:
    launcher.register_instance(instance)
    origin = RepositoryPythonOrigin("python", ModuleCodePointer("m", "f"), container_image="slim")
    definition = build_definitions(Settings()).get_repository_def().get_implicit_global_asset_job_def()
    run = instance.create_run_for_job(definition, job_code_origin=JobPythonOrigin("job", origin))
    launcher.launch_run(LaunchRunContext(run, workspace=None))
    [launched] = api_server.created
    labels = named(render("base"), "PodDisruptionBudget")["runs"]["spec"]["selector"]["matchLabels"]
    assert labels
    assert labels.items() <= launched["spec"]["template"]["metadata"]["labels"].items()


def test_secret_of_keys_is_optional_for_pods(launcher: K8sRunLauncher) -> None:
    for _, built in jobs(launcher):
        entries = built["spec"]["template"]["spec"]["containers"][0]["envFrom"]
        assert {"secretRef": {"name": "caption-secrets", "optional": True}} in entries


def test_weights_cache_is_on_a_volume() -> None:
    cache = Path(named(render("base"), "ConfigMap")["caption-settings"]["data"]["CAPTION_CACHE"])
    mounts = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["volumeMounts"]
    assert any(cache.is_relative_to(mount["mountPath"]) for mount in mounts)


def test_chart_creates_no_roles() -> None:
    assert VALUES["rbacEnabled"] is False
    code = VALUES["dagster-user-deployments"]
    assert code["rbacEnabled"] is False
    # With the code server's configuration, runs would have its account, which cannot launch steps.
    assert code["deployments"][0]["includeConfigInLaunchedRuns"] == {"enabled": False}


def test_code_server_has_the_dagster_instance() -> None:
    # Without dagster.yaml it would create an instance in DAGSTER_HOME and fail on the read-only root.
    assert VALUES["dagster-user-deployments"]["includeInstance"] is True


@pytest.mark.parametrize("image", SERVER_IMAGES)
def test_server_images_have_the_projects_version(image: dict[str, str]) -> None:
    assert image["tag"] == __version__


def test_gpu_image_has_the_projects_version() -> None:
    image = named(render("base"), "ConfigMap")["caption-settings"]["data"]["CAPTION_GPU_IMAGE"]
    assert image.endswith("/caption-assets-gpu:{version}")


def test_webserver_port_is_unprivileged() -> None:
    web = VALUES["dagsterWebserver"]
    assert web["service"]["port"] == web["readinessProbe"]["httpGet"]["port"] >= 1024


def test_service_variables_of_the_code_server_are_not_misspelled_settings() -> None:
    service = VALUES["dagster-user-deployments"]["deployments"][0]["name"].upper().replace("-", "_")
    address = "10.0.0.1"
    environment = {
        f"{service}_SERVICE_HOST": address,
        f"{service}_SERVICE_PORT": "3030",
        f"{service}_SERVICE_PORT_GRPC": "3030",
        f"{service}_PORT": f"tcp://{address}:3030",
        f"{service}_PORT_3030_TCP": f"tcp://{address}:3030",
        f"{service}_PORT_3030_TCP_ADDR": address,
        f"{service}_PORT_3030_TCP_PORT": "3030",
        f"{service}_PORT_3030_TCP_PROTO": "tcp",
    }
    assert not list(unknown_settings(environment, [PREFIX + name.upper() for name in Settings.model_fields]))
