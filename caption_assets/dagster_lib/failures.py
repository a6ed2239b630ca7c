"""Failures of steps and shards: an expected error is reported with its message, another one with its traceback too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from caption_assets.dagster_lib.metadata import markdown_table
from caption_assets.errors import CaptionAssetsError, UnexpectedError, as_project_error, printable


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
    """The failed shards of a step: each is logged at once, and together they fail the step at its end."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._reasons: dict[str, str] = {}

    @contextmanager
    def of(self, shard: str) -> Iterator[None]:
        """Let an exception in the block fail ``shard`` alone."""
        try:
            yield
        except Exception as error:  # not a cancellation
            self.add(shard, as_project_error(error))

    def add(self, shard: str, error: CaptionAssetsError) -> None:
        """Record and log the reason, with a traceback if the error is unexpected."""
        reason = self._reasons[shard] = printable(str(error))
        trace = f"\n{error.traceback}" if isinstance(error, UnexpectedError) else ""
        self._context.log.error(f"{shard}: {reason}{trace}")

    def check(self) -> None:
        """Fail the step if a shard has failed.

        Raises:
            Failure: with the reasons of all failed shards.
        """
        if self._reasons:
            shards = len(self._context.partition_keys)
            raise shards_failed(f"{len(self._reasons)} of {shards} shards failed", self._reasons)


def shards_failed(summary: str, reasons: Mapping[str, str]) -> dg.Failure:
    """The failure of a step over several shards: the first reason in its message, all reasons in its metadata.

    The step is not retried, because a retry would raise the errors again. The schedule requests the shards again later.
    """
    shard, first = next(iter(reasons.items()))
    others = f" (and {len(reasons) - 1} more; see this event's table)" if len(reasons) > 1 else ""
    return dg.Failure(
        f"{summary}: {shard}: {first}{others}",
        metadata={"shards": markdown_table(["shard", "reason"], reasons.items())},
        allow_retries=False,
    )
