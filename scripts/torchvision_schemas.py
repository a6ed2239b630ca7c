"""A start-up hook that makes a CUDA build of torchvision importable with a CPU build of torch.

The set-up copies this file into `.venv` if it is needed, and every interpreter there runs it. Without CUDA, the build's
C++ operators cannot be loaded, and the import of torchvision fails: it registers shape functions for two operators that
have no schema. Declaring the schemas is enough, because this project does not use the operators.

The hook adds nearly nothing to an interpreter's start: torch is imported only when torchvision is.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class TorchvisionFinder:
    """Finder of torchvision that declares the schemas before the module runs."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find torchvision. For any other module return None, so that the import system tries its other finders."""
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def declare_and_run(module: ModuleType) -> None:
            declare_schemas()
            run_module(module)

        spec.loader.exec_module = declare_and_run  # type: ignore[method-assign]
        return spec


def declare_schemas() -> None:
    """Declare the two operators to torch."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    # torch removes the schemas when the library object is deleted.
    declare_schemas.library = library  # type: ignore[attr-defined]


def install() -> None:
    """Add the finder; every interpreter of the environment calls this at its start."""
    sys.meta_path.insert(0, TorchvisionFinder)
