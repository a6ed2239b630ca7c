"""The console log of runs: one line for each thing that a person wants to read, and each failure once.

Dagster's own console logs every event at level DEBUG with the run's id, and a failed step twice with a stack trace. The
event log, which the UI shows, is not affected: it has all events and traces.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import dagster as dg

from caption_assets.dagster_lib.private_dagster import (
    DagsterAssetCheckFailedError,
    RunFailureReason,
    replace_console_logger,
)

STANDARD_ERROR = 2
"""File descriptor."""
_DAGSTER_CLASS = re.compile(r"^dagster\.[\w.]+: ")
"""Name of an error's class that says nothing to users."""
_NOT_EXECUTED = "Dependencies for step "
"""Beginning of Dagster's error about a step that needs a failed one, which has given the reason."""
FAILED_SHARDS = "failed_shards"
"""Metadata of a failure over several shards. Their reasons were logged one by one, so that the console omits them."""


def use_quiet_console() -> None:
    """Let the runs of this process log to the console in this module's form.

    While a step runs, Dagster redirects standard error to a file and copies that to the console. The copy is up to a
    second late and ends with the step, so that a failure's reason may be lost (Dagster issue 23336). The log is
    therefore written to the standard error of the time of this call.
    """
    console = open(os.dup(STANDARD_ERROR), "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def quiet_logger(_: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("caption-assets")
        logger.addHandler(_Console(console))
        return logger

    replace_console_logger(quiet_logger)


class _Console(logging.StreamHandler[Any]):
    """Writes records to standard error: the time, the level unless it is INFO, and the message."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or none for an event that is of no interest."""
        found = _relevant(record)
        if found is None:
            return
        level, text = found
        label = "" if level == logging.INFO else f"{logging.getLevelName(level).lower()}: "
        line = logging.makeLogRecord({**vars(record), "msg": f"{label}{text}", "args": None, "exc_info": None})
        super().emit(line)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S").format(record)


def _relevant(record: logging.LogRecord) -> tuple[int, str] | None:
    """Level and text of a record's line; None if it is omitted."""
    metadata = getattr(record, "dagster_meta", None) or {}
    if event := metadata.get("dagster_event"):
        return _event_line(event, record.levelno)
    message = metadata.get("orig_message") or record.getMessage()
    if record.levelno < logging.INFO or message.startswith(_NOT_EXECUTED):
        return None
    return record.levelno, message


def _event_line(event: dg.DagsterEvent, level: int) -> tuple[int, str] | None:
    """Level and text of an event's line; None if it is omitted."""
    data: Any = event.event_specific_data
    match event.event_type:
        case dg.DagsterEventType.STEP_FAILURE:
            text = failure_text(data)
            return (logging.ERROR, text) if text else None
        case dg.DagsterEventType.STEP_UP_FOR_RETRY:
            return logging.WARNING, f"{event.step_key} is retried: {_error_text(data.error)}"
        case dg.DagsterEventType.RUN_FAILURE if data and data.failure_reason is RunFailureReason.STEP_FAILURE:
            return None  # the step's failure was logged
        case dg.DagsterEventType.RESOURCE_INIT_FAILURE:
            return None  # the failure of the run or step follows, with the same reason
        case dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            return _check_line(data)
        case dg.DagsterEventType.RUN_CANCELED:
            return logging.WARNING, event.message or "the run was canceled"
    if level < logging.WARNING:
        return None
    return level, _error_text(data.error) if getattr(data, "error", None) else event.message or event.event_type.value


def _check_line(check: dg.AssetCheckEvaluation) -> tuple[int, str] | None:
    """Level and text of a failed check's line; None for a passed one, or if the failure of its shard has the text."""
    if check.passed or (check.blocking and check.partition):
        return None
    subject = " of ".join(filter(None, [check.asset_key.to_user_string(), check.partition]))
    level = logging.WARNING if check.severity is dg.AssetCheckSeverity.WARN else logging.ERROR
    return level, f"{check.description or 'failed'} (check {check.check_name} of {subject})"


def failure_text(failure: Any) -> str | None:
    """The reason of a step's failure, without stack trace; None if a failed check's line has it."""
    if (own := failure.user_failure_data) and own.description:
        failed = own.metadata.get(FAILED_SHARDS)
        return f"{failed.value} failed, for the reasons above" if failed else str(own.description)
    if failure.error and failure.error.cls_name == DagsterAssetCheckFailedError.__name__:
        return None
    return _error_text(failure.error)


def _error_text(error: Any) -> str:
    """Type and message of the first cause in a chain of errors."""
    if error is None:
        return "unknown error"
    while error.cause is not None:
        error = error.cause
    return _DAGSTER_CLASS.sub("", str(error.message).strip())
