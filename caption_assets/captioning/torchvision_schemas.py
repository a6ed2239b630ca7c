"""An import hook that makes a CUDA build of torchvision importable with a CPU build of torch.

A registry may have a CPU build of torch and only a CUDA build of torchvision. Without CUDA, that build's C++ operators
cannot be loaded, and the import of torchvision fails: it registers shape functions for two operators that have no
schema. Declaring the schemas is enough, because this project does not use the operators.

The hook adds nearly nothing to an interpreter's start: torch is imported only when torchvision is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
MISSING = "operator torchvision::nms does not exist"
"""Start of torch's message about the missing schemas."""
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
    """Add the finder to this process, once."""
    if TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionFinder)
