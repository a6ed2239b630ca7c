"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

The set-up copies this file into `.venv` and has it started with every interpreter there, and only where it is needed.
The build's C++ operators cannot be loaded without CUDA, and torchvision's import dies of it: it registers shape
functions for two operators that then have no schema. Declaring the schemas is enough; nothing here uses the operators.

It costs an interpreter next to nothing: torch is imported when torchvision is, and not before.
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
    """Finds torchvision where it lies, and has the schemas declared before its first line runs."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Part of the import system: answers for torchvision, and leaves everything else to the other finders."""
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
    """Declares the two operators to torch, for as long as the process lives."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    # torch takes the schemas back when the library object goes.
    declare_schemas.library = library  # type: ignore[attr-defined]


def install() -> None:
    """Called at the start of every interpreter of the environment."""
    sys.meta_path.insert(0, TorchvisionFinder)
