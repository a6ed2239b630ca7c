import os
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml
from kubernetes_validate import latest_version, validate

from caption_assets.environment import PREFIX
from caption_assets.report.server import gallery_app, listen, serving
from caption_assets.settings import Settings
from caption_assets.store.access import CHECKSUMS, WHEN_REQUIRED
from caption_assets.store.root import Root
from tests.k8s.chart import NAMESPACE
from tests.k8s.manifests import (
    K8S,
    KUSTOMIZATIONS,
    TEST_NAMESPACE,
    VALUES,
    named,
    references,
    render,
    settings_of,
    violations,
)

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

CLUSTER_WIDE = {"Namespace", "PersistentVolume", "PriorityClass"}
UNSUPPORTED = {"policy/v1", "batch/v1/CronJob", "autoscaling/v2"}
"""API versions and kinds that the test cluster's Kubernetes 1.20 lacks."""


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_objects_are_valid_in_the_newest_kubernetes(kustomization: str) -> None:
    for item in render(kustomization):
        validate(item, latest_version(), strict=True)


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_objects_are_in_one_namespace(kustomization: str) -> None:
    objects = render(kustomization)
    namespace = TEST_NAMESPACE if kustomization == "overlays/test-cluster" else NAMESPACE
    assert set(named(objects, "Namespace")) == {namespace}
    assert {item["metadata"].get("namespace") for item in objects if item["kind"] not in CLUSTER_WIDE} == {namespace}


def test_objects_that_the_tests_delete_are_in_no_other_cluster() -> None:
    deleted = {(item["kind"], item["metadata"]["name"]) for item in render("overlays/test-cluster")}
    kept = {(item["kind"], item["metadata"]["name"]) for item in render("base")}
    assert not {name for name in deleted & kept if name[0] in CLUSTER_WIDE}


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_namespace_admits_only_restricted_pods(kustomization: str) -> None:
    [namespace] = named(render(kustomization), "Namespace").values()
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_config_map_contains_known_settings(kustomization: str) -> None:
    data = named(render(kustomization), "ConfigMap")["caption-settings"]["data"]
    settings = {name.removeprefix(PREFIX).lower() for name in data if name.startswith(PREFIX)}
    assert settings <= Settings.model_fields.keys()
    assert settings_of(kustomization).executor == "k8s"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_dagsters_s3_client_sends_checksums_only_when_required(kustomization: str) -> None:
    data = named(render(kustomization), "ConfigMap")["caption-settings"]["data"]
    assert {data[f"AWS_{name.upper()}"] for name in CHECKSUMS} == {WHEN_REQUIRED}


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_kustomizations_contain_no_secret(kustomization: str) -> None:
    assert not named(render(kustomization), "Secret")


def test_launcher_has_the_permissions_of_dagster_k8s_and_none_for_secrets() -> None:
    role = named(render("base"), "Role")["dagster"]
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert allowed == {
        ("jobs", "create"),
        ("jobs", "list"),
        ("jobs", "delete"),
        ("jobs/status", "get"),
        ("pods", "get"),
        ("pods", "list"),
        ("pods", "delete"),
        ("pods/log", "get"),
        ("events", "list"),
    }


def test_step_account_has_no_permissions_and_no_token() -> None:
    objects = render("base")
    subjects = [subject["name"] for item in named(objects, "RoleBinding").values() for subject in item["subjects"]]
    assert "caption" not in subjects
    assert named(objects, "ServiceAccount")["caption"]["automountServiceAccountToken"] is False


def test_network_policies_deny_by_default() -> None:
    policy = named(render("base"), "NetworkPolicy")["deny-all"]["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("kustomization", ["base", "overlays/eks", "overlays/spot"])
def test_galleries_are_served_where_links_begin(kustomization: str) -> None:
    objects = render(kustomization)
    pod = named(objects, "Deployment")["gallery"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert list(violations(pod["spec"])) == []
    assert container["image"] == "{repository}:{tag}".format(**VALUES["dagsterWebserver"]["image"])
    known = {(item["kind"], item["metadata"]["name"]) for item in objects} | {("Secret", "caption-secrets")}
    assert set(references(pod["spec"])) <= known
    service = named(objects, "Service")["gallery"]["spec"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    linked = urlsplit(settings_of(kustomization).web_url)
    [port] = service["ports"]
    assert (linked.port, port["targetPort"]) == (port["port"], container["ports"][0]["name"])
    assert container["command"][-1] == str(container["ports"][0]["containerPort"]) == str(linked.port)


def test_gallery_answers_its_probes(tmp_path: Path) -> None:
    pod = named(render("base"), "Deployment")["gallery"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    with listen("127.0.0.1", 0) as listener, serving(gallery_app(Root.open(str(tmp_path)), []), listener):
        for probe in (container["readinessProbe"], container["livenessProbe"]):
            headers = {header["name"]: header["value"] for header in probe["httpGet"]["httpHeaders"]}
            url = f"http://127.0.0.1:{listener.getsockname()[1]}{probe['httpGet']['path']}"
            assert httpx2.get(url, headers=headers, trust_env=False).status_code == 200


def test_test_cluster_gets_only_objects_that_its_kubernetes_supports() -> None:
    for item in render("overlays/test-cluster"):
        assert not {item["apiVersion"], f"{item['apiVersion']}/{item['kind']}"} & UNSUPPORTED


def test_autoscaler_does_not_treat_pods_as_expendable() -> None:
    # Pods below -10 are expendable for Cluster Autoscaler (--expendable-pods-priority-cutoff).
    [priority] = named(render("base"), "PriorityClass").values()
    assert -10 <= priority["value"] < 0


@pytest.mark.parametrize("overlay", ["eks", "spot"])
def test_gpu_nodes_have_the_labels_and_taint_of_the_captioning_pod(overlay: str) -> None:
    config = yaml.safe_load((K8S / "overlays" / overlay / "cluster.yaml").read_text())
    [group] = config["managedNodeGroups"]
    labels = {**group["labels"], "eks.amazonaws.com/capacityType": "SPOT" if group.get("spot") else "ON_DEMAND"}
    wanted = settings_of(f"overlays/{overlay}").gpu_node_selector
    assert {name: labels[name] for name in wanted} == wanted
    assert [taint["key"] for taint in group["taints"]] == ["nvidia.com/gpu"]


def test_service_accounts_have_the_roles_of_the_cluster_file() -> None:
    config = yaml.safe_load((K8S / "overlays" / "eks" / "cluster.yaml").read_text())
    created = {entry["metadata"]["name"]: entry["roleName"] for entry in config["iam"]["serviceAccounts"]}
    accounts = named(render("overlays/eks"), "ServiceAccount")
    roles = {
        name: account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].split("/")[-1]
        for name, account in accounts.items()
    }
    assert roles == created


def test_volumes_of_the_test_cluster_are_reserved_for_their_claims() -> None:
    objects = render("overlays/test-cluster")
    volumes, claims = named(objects, "PersistentVolume"), named(objects, "PersistentVolumeClaim")
    assert {volume["spec"]["claimRef"]["name"] for volume in volumes.values()} == claims.keys()
    assert {claim["spec"]["volumeName"] for claim in claims.values()} == volumes.keys()
    for volume in volumes.values():
        assert volume["spec"]["hostPath"]["path"].startswith("$"), "not a variable that the tests replace"


def test_every_kustomization_is_tested() -> None:
    found = {str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")}
    assert found == {*KUSTOMIZATIONS, "cache-claim", "monitoring"}


def test_overlay_can_include_the_claim_of_the_cache(tmp_path: Path) -> None:
    folders = {"resources": "base", "components": "cache-claim"}
    overlay = {field: [os.path.relpath(K8S / folder, tmp_path)] for field, folder in folders.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({**overlay, "namespace": "captions"}))
    claim = named(render(str(tmp_path)), "PersistentVolumeClaim")["caption-cache"]
    validate(claim, latest_version(), strict=True)
