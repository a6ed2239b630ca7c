"""Import hooks for a CPU build of torch beside CUDA builds of torchvision, torchaudio and torchcodec.

Without CUDA, the C++ libraries of these builds cannot be loaded, and their imports fail. A registry may have no others.
This project uses none of the libraries, but vLLM and transformers import them:

- torchvision registers shape functions for two operators that have no schema: declaring the schemas is enough;
- torchaudio and torchcodec are hidden, because they are optional;
- vLLM inspects a model's class in this process instead of another one, which would lack these hooks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
MISSING = "operator torchvision::nms does not exist"
"""Start of torch's message about the missing schemas."""
OPTIONAL = ("torchaudio", "torchcodec")
"""Libraries that vLLM and transformers work without."""
_libraries: list[Any] = []
"""torch removes the schemas when their library object is deleted."""


def run_with_schemas(run_module: Callable[[ModuleType], None], torchvision: ModuleType) -> None:
    """Run the module torchvision, and again with the schemas declared if it fails without them."""
    try:
        run_module(torchvision)
    except RuntimeError as error:
        if not str(error).startswith(MISSING):
            raise
        declare_schemas()
        run_module(torchvision)


def run_without_subprocess(run_module: Callable[[ModuleType], None], registry: ModuleType) -> None:
    """Run the module of vLLM's model registry. Its subprocess keeps CUDA uninitialized, which a CPU build has not."""
    run_module(registry)
    if _is_cpu_build("torch"):
        registry.__dict__["_run_in_subprocess"] = lambda inspect: inspect()


HOOKS = {"torchvision": run_with_schemas, "vllm.model_executor.models.registry": run_without_subprocess}
"""Names of modules, each with the function that runs it."""


class HookFinder:
    """Finder of the modules that have a hook."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module with a hook. For any other return None, so that the import system tries its other finders."""
        if name not in HOOKS:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(HOOKS[name], spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def declare_schemas() -> None:
    """Declare the two operators to torch."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def install() -> None:
    """Add the hooks to this process. torch itself is imported only when torchvision is."""
    if HookFinder not in sys.meta_path:
        sys.meta_path.insert(0, HookFinder)
    if _is_cpu_build("torch"):
        for name in OPTIONAL:
            if not _is_cpu_build(name):
                sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # importlib finds no module with this name


def _is_cpu_build(package: str) -> bool:
    try:
        return version(package).endswith("+cpu")
    except PackageNotFoundError:
        return False
