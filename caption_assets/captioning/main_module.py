"""The caller's main module, which multiprocessing imports in every process that it spawns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOCATION = ("__spec__", "__file__")
"""The attributes by which multiprocessing finds the module."""


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Processes that multiprocessing spawns within the block do not import the main module.

    It would run a script without a main guard once more in each of them, and fails for a script from stdin. They must
    need nothing that the main module defines.
    """
    attributes = sys.modules["__main__"].__dict__
    hidden = {name: attributes[name] for name in LOCATION if name in attributes}
    attributes.pop("__file__", None)
    attributes["__spec__"] = None
    try:
        yield
    finally:
        attributes.update(hidden)
