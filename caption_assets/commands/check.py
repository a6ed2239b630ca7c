"""A check of the command ``doctor``: its statuses and findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum


class Status(StrEnum):
    """The status of a finding, the most severe first."""

    FAILED = "failed"
    WARNING = "warning"
    OK = "ok"


FAILED, WARNING, OK = Status.FAILED, Status.WARNING, Status.OK
Finding = tuple[Status, str]
"""A status and a message, which names the remedy unless the status is ``ok``."""
Check = Callable[[], Iterator[Finding]]
"""A check. It yields its findings; an exception counts as failed, with its message."""


def ok(message: str) -> Finding:
    """A finding that needs no action."""
    return OK, message


def warning(message: str) -> Finding:
    """A finding that blocks nothing, or not everything."""
    return WARNING, message


def failed(message: str) -> Finding:
    """A finding that blocks captioning."""
    return FAILED, message
