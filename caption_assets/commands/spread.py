"""Samples of a sequence that represent all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[round((position + 0.5) * len(items) / count - 0.5)] for position in range(count)]
