import re

import pytest

from tests.k8s.manifests import K8S, VALUES

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

PROJECT = K8S.parent
DOCKERFILES = {path.stem: path.read_text() for path in K8S.glob("*.Dockerfile")}


def pins(lock: str) -> dict[str, str]:
    """Versions in a lock file, by package."""
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", (PROJECT / "requirements" / lock).read_text(), re.MULTILINE))


def test_both_images_have_a_dockerfile() -> None:
    assert DOCKERFILES.keys() == {"slim", "gpu"}


@pytest.mark.parametrize("image", ["slim", "gpu"])
def test_image_runs_as_the_user_of_the_values(image: str) -> None:
    context = VALUES["dagsterDaemon"]["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in DOCKERFILES[image]


@pytest.mark.parametrize("image", ["slim", "gpu"])
def test_base_images_are_pinned(image: str) -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILES[image], re.MULTILINE)
    assert bases
    assert [base for base in bases if not re.search(r":v?\d+\.\d+\.\d+", base)] == []


def test_gpu_image_has_the_locked_vllm() -> None:
    assert f"FROM vllm/vllm-openai:v{pins('gpu.lock')['vllm']}\n" in DOCKERFILES["gpu"]


def test_added_packages_keep_those_of_the_vllm_image() -> None:
    added, engine = pins("k8s.lock"), pins("gpu.lock")
    assert not added.keys() & {"torch", "torchvision", "transformers", "vllm"}
    assert {name: version for name, version in added.items() if engine.get(name, version) != version} == {}


def test_images_contain_only_listed_files() -> None:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
