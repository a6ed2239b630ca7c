"""The errors that end a Dagster command, such as ``dg launch``: one message instead of a traceback."""

from __future__ import annotations

import re
import sys
from types import TracebackType

import dagster as dg

from caption_assets.dagster_lib.private_dagster import CheckError, DagsterUnknownPartitionError
from caption_assets.dagster_lib.project import Project
from caption_assets.errors import CaptionAssetsError
from caption_assets.sources.unknown_shard import UnknownShard

_KEY = re.compile(r"with key `(.*)`")
"""Pattern of Dagster's message about an unknown partition."""


def report_errors_briefly(project: Project | None) -> None:
    """End this process with the message alone on an error that users can fix. Other errors keep their traceback.

    Args:
        project: the project of the shards; None if the settings are invalid.
    """

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = error_message(error, project)
        if message is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"Error: {message}", file=sys.stderr)

    sys.excepthook = report


def error_message(error: BaseException, project: Project | None) -> str | None:
    """The message of an error that users can fix; None for others."""
    if isinstance(error, CaptionAssetsError):
        return str(error)
    unknown = error.__context__
    if project and isinstance(unknown, DagsterUnknownPartitionError) and (key := _KEY.search(str(unknown))):
        with dg.DagsterInstance.get() as instance:
            return str(UnknownShard(key[1], project.registered(instance)))
    if isinstance(error, CheckError) and "--partition" in str(error):
        return str(error).removeprefix("Failure condition: ")
    return None
