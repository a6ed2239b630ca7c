"""The objects in `k8s/` as kustomize renders them, and pods' violations of the "restricted" standard."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from caption_assets.settings import Settings

K8S = Path(__file__).parents[2] / "k8s"
VALUES: dict[str, Any] = yaml.safe_load((K8S / "values.yaml").read_text())
KUSTOMIZATIONS = ("base", "overlays/test-cluster", "overlays/eks", "overlays/spot")

Object = Mapping[str, Any]
"""A Kubernetes object, as in its YAML."""
TEST_NAMESPACE = "captions-test"
"""Namespace of the test cluster; the tests delete it."""

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""Volume types that "restricted" allows (kubernetes.io/docs/concepts/security/pod-security-standards)."""


@cache
def render(kustomization: str) -> Sequence[Object]:
    """The objects of a folder in `k8s/`."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl 1.27 or later, which has kustomize 5")
    done = subprocess.run([kubectl, "kustomize", K8S / kustomization], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # deprecated fields
    return list(yaml.safe_load_all(done.stdout))


def named(objects: Sequence[Object], kind: str) -> dict[str, Object]:
    """Objects of a kind, by name."""
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def settings_of(kustomization: str) -> Settings:
    """The project's settings from the ConfigMap, as a pod reads them."""
    data = named(render(kustomization), "ConfigMap")["caption-settings"]["data"]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in data.items():
            environment.setenv(name, value)
        return Settings()


def violations(pod: Object) -> Iterator[str]:
    """Parts of a pod's spec that violate "restricted", or our own rule of a read-only root file system."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes") or []:
        if forbidden := volume.keys() - VOLUMES - {"name"}:
            yield f"volume {volume['name']}: {', '.join(forbidden)}"
    shared = pod.get("securityContext") or {}
    for container in [*pod["containers"], *(pod.get("initContainers") or [])]:
        own = {**shared, **(container.get("securityContext") or {})}
        rules = {
            "not root": own.get("runAsNonRoot") is True and own.get("runAsUser", 1) != 0,
            "no privilege escalation": own.get("allowPrivilegeEscalation") is False and not own.get("privileged"),
            "no capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "seccomp": (own.get("seccompProfile") or {}).get("type") == "RuntimeDefault",
            "read-only root file system": own.get("readOnlyRootFilesystem") is True,
            "no host port": not any("hostPort" in port for port in container.get("ports") or []),
        }
        yield from (f"{container['name']}: {rule}" for rule, holds in rules.items() if not holds)


def references(pod: Object) -> Iterator[tuple[str, str]]:
    """Kind and name of every object that a pod's spec refers to."""
    if account := pod.get("serviceAccountName"):
        yield "ServiceAccount", account
    if priority := pod.get("priorityClassName"):
        yield "PriorityClass", priority
    for volume in pod.get("volumes") or []:
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"]
    for container in pod["containers"]:
        for entry in container.get("envFrom") or []:
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if reference := entry.get(key):
                    yield kind, reference["name"]
        for variable in container.get("env") or []:
            if reference := (variable.get("valueFrom") or {}).get("secretKeyRef"):
                yield "Secret", reference["name"]
