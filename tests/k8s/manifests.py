"""The files in `k8s/` as objects: what kustomize makes of them, what the standard "restricted" says of a pod."""

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
"""An object of Kubernetes, as in its YAML."""
TEST_NAMESPACE = "captions-test"
"""Of the test cluster: the tests remove it."""

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""The kinds that "restricted" allows (kubernetes.io/docs/concepts/security/pod-security-standards)."""


@cache
def render(kustomization: str) -> Sequence[Object]:
    """The objects of a folder of `k8s/`."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl 1.27 or later, which has kustomize 5")
    done = subprocess.run([kubectl, "kustomize", K8S / kustomization], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # fields that kustomize is about to drop
    return list(yaml.safe_load_all(done.stdout))


def named(objects: Sequence[Object], kind: str) -> dict[str, Object]:
    """The objects of a kind, by name."""
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def settings_of(kustomization: str) -> Settings:
    """The project's settings by the ConfigMap, as a pod reads them."""
    data = named(render(kustomization), "ConfigMap")["caption-settings"]["data"]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in data.items():
            environment.setenv(name, value)
        return Settings()


def breaches(pod: Object) -> Iterator[str]:
    """Where a pod's spec goes beyond "restricted", or lacks the read-only root that we ask for besides."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes") or []:
        if extra := volume.keys() - VOLUMES - {"name"}:
            yield f"volume {volume['name']}: {', '.join(extra)}"
    shared = pod.get("securityContext") or {}
    for container in [*pod["containers"], *(pod.get("initContainers") or [])]:
        own = {**shared, **(container.get("securityContext") or {})}
        wanted = {
            "root": own.get("runAsNonRoot") is True and own.get("runAsUser", 1) != 0,
            "escalation": own.get("allowPrivilegeEscalation") is False and not own.get("privileged"),
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "seccomp": (own.get("seccompProfile") or {}).get("type") == "RuntimeDefault",
            "writable root": own.get("readOnlyRootFilesystem") is True,
            "host port": not any("hostPort" in port for port in container.get("ports") or []),
        }
        yield from (f"{container['name']}: {what}" for what, holds in wanted.items() if not holds)


def sources(pod: Object) -> Iterator[tuple[str, str]]:
    """Kind and name of every object that a pod's spec names."""
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
