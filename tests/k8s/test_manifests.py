import os
from pathlib import Path

import pytest
import yaml
from kubernetes_validate import latest_version, validate

from caption_assets.environment import PREFIX
from caption_assets.settings import Settings
from caption_assets.store.access import CHECKSUMS, WHEN_REQUIRED
from tests.k8s.chart import NAMESPACE
from tests.k8s.manifests import K8S, KUSTOMIZATIONS, TEST_NAMESPACE, named, render, settings_of

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

CLUSTER_WIDE = {"Namespace", "PersistentVolume", "PriorityClass"}
OLD_KINDS = {"policy/v1", "batch/v1/CronJob", "autoscaling/v2"}
"""Kinds and fields that the test cluster's Kubernetes 1.20 lacks."""


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_object_is_one_of_the_newest_kubernetes(kustomization: str) -> None:
    for item in render(kustomization):
        validate(item, latest_version(), strict=True)


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_object_is_in_the_one_namespace(kustomization: str) -> None:
    objects = render(kustomization)
    namespace = TEST_NAMESPACE if kustomization == "overlays/test-cluster" else NAMESPACE
    assert set(named(objects, "Namespace")) == {namespace}
    assert {item["metadata"].get("namespace") for item in objects if item["kind"] not in CLUSTER_WIDE} == {namespace}


def test_what_the_tests_remove_from_their_cluster_is_in_no_other() -> None:
    theirs = {(item["kind"], item["metadata"]["name"]) for item in render("overlays/test-cluster")}
    others = {(item["kind"], item["metadata"]["name"]) for item in render("base")}
    assert not {name for name in theirs & others if name[0] in CLUSTER_WIDE}


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_the_namespace_admits_restricted_pods_alone(kustomization: str) -> None:
    [namespace] = named(render(kustomization), "Namespace").values()
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_setting_in_the_config_map_is_one_of_the_project(kustomization: str) -> None:
    data = named(render(kustomization), "ConfigMap")["caption-settings"]["data"]
    ours = {name.removeprefix(PREFIX).lower() for name in data if name.startswith(PREFIX)}
    assert ours <= Settings.model_fields.keys()
    assert settings_of(kustomization).executor == "k8s"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_dagsters_own_s3_client_sends_no_checksums_that_stores_refuse(kustomization: str) -> None:
    data = named(render(kustomization), "ConfigMap")["caption-settings"]["data"]
    assert {data[f"AWS_{name.upper()}"] for name in CHECKSUMS} == {WHEN_REQUIRED}


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_no_secret_is_in_the_tree(kustomization: str) -> None:
    assert not named(render(kustomization), "Secret")


def test_the_launcher_may_do_what_dagster_k8s_calls_and_cannot_read_secrets() -> None:
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


def test_the_account_of_the_steps_has_no_rights_and_no_token() -> None:
    objects = render("base")
    subjects = [subject["name"] for item in named(objects, "RoleBinding").values() for subject in item["subjects"]]
    assert "caption" not in subjects
    assert named(objects, "ServiceAccount")["caption"]["automountServiceAccountToken"] is False


def test_whatever_is_not_allowed_by_the_network_policies_is_forbidden() -> None:
    nothing = named(render("base"), "NetworkPolicy")["nothing"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_test_cluster_gets_only_what_its_kubernetes_knows() -> None:
    for item in render("overlays/test-cluster"):
        assert not {item["apiVersion"], f"{item['apiVersion']}/{item['kind']}"} & OLD_KINDS


def test_a_node_is_started_for_a_pod_that_waits_and_kept_for_one_that_runs() -> None:
    # Cluster Autoscaler takes pods below -10 for expendable: its option --expendable-pods-priority-cutoff.
    [priority] = named(render("base"), "PriorityClass").values()
    assert -10 <= priority["value"] < 0


@pytest.mark.parametrize("overlay", ["eks", "spot"])
def test_gpu_nodes_have_the_labels_and_the_taint_of_the_captioning_pod(overlay: str) -> None:
    config = yaml.safe_load((K8S / "overlays" / overlay / "cluster.yaml").read_text())
    [group] = config["managedNodeGroups"]
    labels = {**group["labels"], "eks.amazonaws.com/capacityType": "SPOT" if group.get("spot") else "ON_DEMAND"}
    wanted = settings_of(f"overlays/{overlay}").gpu_node_selector
    assert {name: labels[name] for name in wanted} == wanted
    assert [taint["key"] for taint in group["taints"]] == ["nvidia.com/gpu"]


def test_both_accounts_have_the_role_that_is_made_for_them() -> None:
    config = yaml.safe_load((K8S / "overlays" / "eks" / "cluster.yaml").read_text())
    made = {entry["metadata"]["name"]: entry["roleName"] for entry in config["iam"]["serviceAccounts"]}
    accounts = named(render("overlays/eks"), "ServiceAccount")
    roles = {
        name: account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].split("/")[-1]
        for name, account in accounts.items()
    }
    assert roles == made


def test_host_folders_of_the_test_cluster_are_claimed_by_this_namespace_alone() -> None:
    objects = render("overlays/test-cluster")
    volumes, claims = named(objects, "PersistentVolume"), named(objects, "PersistentVolumeClaim")
    assert {volume["spec"]["claimRef"]["name"] for volume in volumes.values()} == claims.keys()
    assert {claim["spec"]["volumeName"] for claim in claims.values()} == volumes.keys()
    for volume in volumes.values():
        assert volume["spec"]["hostPath"]["path"].startswith("$"), "no machine's path: the tests put theirs in"


def test_every_folder_with_a_kustomization_is_rendered_here() -> None:
    found = {str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")}
    assert found == {*KUSTOMIZATIONS, "cache-claim", "monitoring"}


def test_the_claim_for_the_cache_goes_into_an_overlay(tmp_path: Path) -> None:
    folders = {"resources": "base", "components": "cache-claim"}
    overlay = {field: [os.path.relpath(K8S / folder, tmp_path)] for field, folder in folders.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({**overlay, "namespace": "captions"}))
    claim = named(render(str(tmp_path)), "PersistentVolumeClaim")["caption-cache"]
    validate(claim, latest_version(), strict=True)
