"""How the project's own errors end a step: with their message, and without a traceback of the project's insides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from caption_assets.errors import CaptionAssetsError


@contextmanager
def clear_failures() -> Iterator[None]:
    """Turn a ``CaptionAssetsError`` into a Dagster failure that shows its message."""
    try:
        yield
    except CaptionAssetsError as error:
        raise dg.Failure(description=str(error)) from None
