import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.code_pointer import load_python_module
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import get_user_defined_k8s_config
from kubernetes_validate import latest_version, validate

from caption_assets import __version__
from caption_assets.definitions import build_definitions
from caption_assets.environment import PREFIX, unknown_settings
from caption_assets.kubernetes.pods import (
    CAPTION_STEP,
    STEP_SECONDS,
    VERSION_VARIABLE,
    caption_run_config,
    step_pod,
)
from caption_assets.settings import Settings
from tests.k8s.chart import instance_config, instance_parts, job, server_pods
from tests.k8s.manifests import K8S, VALUES, Object, breaches, named, render, settings_of, sources

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

PROJECT = K8S.parent
GUIDE = PROJECT / "docs" / "how-to" / "kubernetes.md"
STEPS = ("model_weights", "clip_manifest", "stage1_captions")
SERVER_IMAGES = [
    VALUES["dagsterWebserver"]["image"],
    VALUES["dagsterDaemon"]["image"],
    VALUES["dagster-user-deployments"]["deployments"][0]["image"],
]


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> K8sRunLauncher:
    """The launcher of the values, as in a cluster."""
    monkeypatch.setattr(kubernetes.config, "load_incluster_config", lambda: None)
    config = instance_config(VALUES)["run_launcher"]["config"]
    return K8sRunLauncher(**config)


def steps(launcher: K8sRunLauncher) -> Iterator[tuple[str, Object]]:
    """The Job of a run, and of each of its steps, with the settings of the ConfigMap."""
    yield "run", job(launcher, "slim")
    settings = settings_of("base")
    definitions = build_definitions(settings)
    sized = caption_run_config(settings, 10, 57_600)["execution"]["config"]["per_step_k8s_config"]["captions"]
    for asset in STEPS:
        op = definitions.resolve_assets_def(dg.AssetKey(asset)).op
        layers = [step_pod(settings), get_user_defined_k8s_config(op.tags).to_dict()]
        yield asset, job(launcher, "slim", *layers, *([sized] if op.name == CAPTION_STEP else []))


def test_dagster_accepts_the_dagster_yaml_that_the_chart_makes_of_the_values(tmp_path: Path) -> None:
    for part in instance_parts(VALUES, tmp_path):
        kind: Any = getattr(load_python_module(part.module_name, None), part.class_name)
        checked = validate_config(kind.config_type(), part.config_dict)
        assert checked.success, f"{part.class_name}: {checked.errors}"


def test_what_the_local_dagster_yaml_sets_for_both_is_the_same() -> None:
    local, cluster = yaml.safe_load((PROJECT / "dagster.yaml").read_text()), instance_config(VALUES)
    assert local["telemetry"] == cluster["telemetry"]
    assert local["run_coordinator"]["class"] == cluster["run_coordinator"]["class"]
    # How often a lost run is made again is the cluster's own affair: on one machine nothing takes a run's pod away.
    for key in ("enabled", "retry_on_asset_or_op_failure"):
        assert local["run_retries"][key] == cluster["run_retries"][key]


def test_a_lost_run_frees_its_slot_and_is_not_taken_up_again() -> None:
    monitoring = instance_config(VALUES)["run_monitoring"]
    assert monitoring["enabled"]
    assert monitoring["max_resume_run_attempts"] == 0
    assert monitoring["free_slots_after_run_end_seconds"] == 300


def test_the_pool_lets_no_more_gpu_pods_start_than_the_quota_has_gpus_for() -> None:
    quota = named(render("base"), "ResourceQuota")["captions"]["spec"]["hard"]
    assert VALUES["concurrency"]["pools"]["defaultLimit"] <= int(quota["requests.nvidia.com/gpu"])


def test_all_pods_are_restricted(launcher: K8sRunLauncher) -> None:
    for name, pod in server_pods(VALUES).items():
        assert list(breaches(pod)) == [], name
    for name, made in steps(launcher):
        assert list(breaches(made["spec"]["template"]["spec"])) == [], name


def test_all_jobs_are_ones_of_the_newest_kubernetes(launcher: K8sRunLauncher) -> None:
    for _, made in steps(launcher):
        validate(made, latest_version(), strict=True)


def test_everything_that_a_pod_names_is_in_the_base_or_made_by_the_guide(launcher: K8sRunLauncher) -> None:
    there = {(item["kind"], item["metadata"]["name"]) for item in render("base")}
    there |= {("Secret", name) for name in re.findall(r"create secret generic ([a-z-]+)", GUIDE.read_text())}
    pods = [*server_pods(VALUES).values(), *(made["spec"]["template"]["spec"] for _, made in steps(launcher))]
    assert {source for pod in pods for source in sources(pod)} <= there


def test_what_is_meant_for_captioning_pods_is_told_by_the_steps_name() -> None:
    objects = [*render("base"), *render("monitoring")]
    step = build_definitions(Settings()).resolve_assets_def(dg.AssetKey("stage1_captions")).op.name
    label = {"dagster/op": step}  # dagster-k8s gives it to every pod of a step
    assert named(objects, "PodDisruptionBudget")["captioning"]["spec"]["selector"]["matchLabels"] == label
    assert named(objects, "NetworkPolicy")["metrics"]["spec"]["podSelector"]["matchLabels"] == label
    assert named(objects, "PodMonitor")["captioning"]["spec"]["selector"]["matchLabels"] == label


def test_steps_run_under_the_account_without_rights_and_the_run_under_the_one_that_launches(
    launcher: K8sRunLauncher,
) -> None:
    pods = {name: made["spec"]["template"]["spec"] for name, made in steps(launcher)}
    assert pods.pop("run")["serviceAccountName"] == "dagster"
    assert {(pod["serviceAccountName"], pod["automountServiceAccountToken"]) for pod in pods.values()} == {
        ("caption", False)
    }


def test_the_captioning_step_alone_takes_the_gpu_image_and_a_gpu(launcher: K8sRunLauncher) -> None:
    for name, made in steps(launcher):
        [container] = made["spec"]["template"]["spec"]["containers"]
        captions = name == "stage1_captions"
        assert ("caption-assets-gpu" in container["image"]) is captions
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is captions


def test_a_projects_own_settings_outrank_those_of_all_projects(launcher: K8sRunLauncher) -> None:
    [addition] = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    server = yaml.safe_load(addition)
    [context] = server["env"]
    assert context["name"] == "DAGSTER_CONTAINER_CONTEXT"
    made = job(launcher, "slim", step_pod(settings_of("base")), code_server=json.loads(context["value"]))
    [container] = made["spec"]["template"]["spec"]["containers"]
    maps = [entry["configMapRef"] for entry in container["envFrom"] if "configMapRef" in entry]
    assert maps == server["envConfigMaps"]  # Kubernetes: of equal keys the last source's takes precedence


def test_the_schedules_size_comes_on_top_of_what_the_captioning_pod_has(launcher: K8sRunLauncher) -> None:
    [container] = dict(steps(launcher))["stage1_captions"]["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert given[VERSION_VARIABLE] == __version__
    assert given["CAPTION_DECODE_WORKERS"] == "1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_what_prometheus_asks_is_declared_by_the_captioning_pod(launcher: K8sRunLauncher) -> None:
    [endpoint] = named(render("monitoring"), "PodMonitor")["captioning"]["spec"]["podMetricsEndpoints"]
    [container] = dict(steps(launcher))["stage1_captions"]["spec"]["template"]["spec"]["containers"]
    declared = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert declared[endpoint["port"]] == settings_of("base").metrics_port


def test_pods_at_work_are_not_taken_for_idle_and_those_of_a_run_that_is_over_go(launcher: K8sRunLauncher) -> None:
    for name, made in steps(launcher):
        assert made["spec"]["template"]["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }, name
    seconds = {name: made["spec"]["ttlSecondsAfterFinished"] for name, made in steps(launcher)}
    assert seconds.pop("run") == 300
    assert set(seconds.values()) == {STEP_SECONDS}  # they go with the run's pod


def test_the_budget_for_runs_is_for_the_pods_that_dagster_labels_as_theirs() -> None:
    labels = named(render("base"), "PodDisruptionBudget")["runs"]["spec"]["selector"]["matchLabels"]
    source = inspect.getsource(K8sRunLauncher)
    for label, value in labels.items():
        assert label == "app.kubernetes.io/component"
        assert f'component="{value}"' in source


def test_pods_of_a_run_start_without_the_secret_for_keys(launcher: K8sRunLauncher) -> None:
    for _, made in steps(launcher):
        entries = made["spec"]["template"]["spec"]["containers"][0]["envFrom"]
        assert {"secretRef": {"name": "caption-secrets", "optional": True}} in entries


def test_the_weights_cache_of_the_settings_is_on_a_volume() -> None:
    cache = Path(named(render("base"), "ConfigMap")["caption-settings"]["data"]["CAPTION_CACHE"])
    mounts = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["volumeMounts"]
    assert any(cache.is_relative_to(mount["mountPath"]) for mount in mounts)


def test_no_account_gets_rights_but_those_of_the_base() -> None:
    assert VALUES["rbacEnabled"] is False
    code = VALUES["dagster-user-deployments"]
    assert code["rbacEnabled"] is False
    # With the code server's own configuration, runs would have its account, which may not launch steps.
    assert code["deployments"][0]["includeConfigInLaunchedRuns"] == {"enabled": False}


def test_the_code_server_has_dagsters_instance() -> None:
    # Without its dagster.yaml it makes an instance in DAGSTER_HOME, fails on the read-only root and loads nothing.
    assert VALUES["dagster-user-deployments"]["includeInstance"] is True


@pytest.mark.parametrize("image", SERVER_IMAGES)
def test_images_carry_the_projects_version(image: dict[str, str]) -> None:
    assert image["tag"] == __version__


def test_the_captioning_pods_image_carries_the_projects_version() -> None:
    image = named(render("base"), "ConfigMap")["caption-settings"]["data"]["CAPTION_GPU_IMAGE"]
    assert image.endswith("/caption-assets-gpu:{version}")


def test_the_webserver_needs_no_root_for_its_port() -> None:
    web = VALUES["dagsterWebserver"]
    assert web["service"]["port"] == web["readinessProbe"]["httpGet"]["port"] >= 1024


def test_the_variables_of_the_code_servers_service_are_not_taken_for_misspelt_settings() -> None:
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
