"""Failures of steps and shards: reported once, with the reason first; unexpected errors keep their traceback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from caption_assets.dagster_lib.console import FAILED_SHARDS
from caption_assets.dagster_lib.metadata import markdown_table
from caption_assets.errors import CaptionAssetsError, UnexpectedError, as_project_error, printable

SHARDS_METADATA = "shards"
"""Name of the reasons by shard, in the metadata of a failure of single shards."""


@contextmanager
def as_dagster_failure() -> Iterator[None]:
    """Turn any exception into a Dagster failure that is not retried.

    A retry would raise the error again. Steps are retried only after the loss of their pod (``step_retry_policy``) or
    on Dagster's own retry requests. An unexpected error keeps its traceback.
    """
    try:
        yield
    except (dg.Failure, dg.RetryRequested):
        raise
    except CaptionAssetsError as error:
        raise dg.Failure(description=printable(str(error)), allow_retries=False) from None
    except Exception as error:
        raise dg.Failure(description=str(as_project_error(error)), allow_retries=False) from error


class ShardFailures:
    """The failed shards of a step, which fails at its end. Of several shards, each failure is logged at once."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self.reasons: dict[str, str] = {}
        """The reason of each failed shard."""

    @contextmanager
    def of(self, shard: str) -> Iterator[None]:
        """Let an exception in the block fail ``shard`` alone."""
        try:
            yield
        except Exception as error:  # not a cancellation
            self.add(shard, as_project_error(error))

    def add(self, shard: str, error: CaptionAssetsError) -> None:
        """Record the reason. The traceback of an unexpected error is logged at level DEBUG."""
        reason = self.reasons[shard] = printable(str(error))
        if len(self._context.partition_keys) > 1:
            self._context.log.error(f"{shard}: {reason}")
        if isinstance(error, UnexpectedError):
            self._context.log.debug(f"{shard}: {error.traceback}")

    def check(self) -> None:
        """Fail the step if a shard has failed.

        Raises:
            Failure: with the reasons of all failed shards.
        """
        if self.reasons:
            raise shards_failed(self.reasons, len(self._context.partition_keys), logged=True)


def shards_failed(reasons: Mapping[str, str], shards: int, *, logged: bool = False) -> dg.Failure:
    """The failure of a step: the first reason in its message and, of several shards, all reasons in its metadata.

    The step is not retried, because a retry would raise the errors again. The schedule requests the shards again later.

    Args:
        reasons: reason of the failure, by shard.
        shards: number of the step's shards.
        logged: whether the reasons were logged one by one, so that the console need not repeat them.
    """
    shard, first = next(iter(reasons.items()))
    reason = f"{shard}: {first}"
    if shards == 1:
        return dg.Failure(reason, allow_retries=False)
    failed = f"{len(reasons)} of {shards} shards"
    return dg.Failure(
        f"{reason} ({failed} failed; this event's table has all reasons)",
        metadata={
            SHARDS_METADATA: markdown_table(["shard", "reason"], reasons.items()),
            **({FAILED_SHARDS: failed} if logged else {}),
        },
        allow_retries=False,
    )
