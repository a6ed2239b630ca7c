"""Import hooks for a CPU build of torch beside CUDA builds of torchvision, torchaudio and torchcodec.

Without CUDA, the C++ libraries of these builds cannot be loaded, and their imports fail. A registry may have no others.
This project uses none of the libraries, but vLLM and transformers import them:

- torchvision registers shape functions for two operators that have no schema: declaring the schemas is enough;
- torchaudio and torchcodec are hidden, because they are optional.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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


class TorchvisionFinder:
    """Finder of torchvision that declares the schemas if the import fails without them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find torchvision. For any other module return None, so that the import system tries its other finders."""
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def run_with_schemas(module: ModuleType) -> None:
            try:
                run_module(module)
            except RuntimeError as error:
                if not str(error).startswith(MISSING):
                    raise
                declare_schemas()
                run_module(module)

        spec.loader.exec_module = run_with_schemas  # type: ignore[method-assign]
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
    if TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionFinder)
    if _is_cpu_build("torch"):
        for name in OPTIONAL:
            if not _is_cpu_build(name):
                sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # importlib finds no module with this name


def _is_cpu_build(package: str) -> bool:
    try:
        return version(package).endswith("+cpu")
    except PackageNotFoundError:
        return False
