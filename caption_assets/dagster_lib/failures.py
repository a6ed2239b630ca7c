"""Errors that end a step or a shard: a message for a person, and a traceback only where nobody foresaw the error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from caption_assets.dagster_lib.metadata import markdown_table
from caption_assets.errors import CaptionAssetsError, UnexpectedError, as_project_error, printable


@contextmanager
def as_dagster_failure() -> Iterator[None]:
    """Turn whatever is raised into a Dagster failure that is not retried.

    What failed by itself fails again: no error is a reason to retry the step. A lost pod is (see ``step_retries``), and
    so are Dagster's own requests. An error that nobody foresaw keeps its traceback.
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
    """The shards of a step that failed: each is logged at once, and all together fail the step at its end."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._reasons: dict[str, str] = {}

    @contextmanager
    def of(self, shard: str) -> Iterator[None]:
        """Within the block whatever is raised fails ``shard``, and goes no further."""
        try:
            yield
        except Exception as error:  # a cancellation is none
            self.add(shard, as_project_error(error))

    def add(self, shard: str, error: CaptionAssetsError) -> None:
        """Keep and log the reason, with a traceback if nobody foresaw it."""
        reason = self._reasons[shard] = printable(str(error))
        trace = f"\n{error.traceback}" if isinstance(error, UnexpectedError) else ""
        self._context.log.error(f"{shard}: {reason}{trace}")

    def check(self) -> None:
        """End the step.

        Raises:
            Failure: if a shard failed.
        """
        if self._reasons:
            shards = len(self._context.partition_keys)
            raise shards_failed(f"{len(self._reasons)} of {shards} shards failed", self._reasons)


def shards_failed(summary: str, reasons: Mapping[str, str]) -> dg.Failure:
    """The end of a step over several shards: one event with the first reason in its text and every shard's beside it.

    What failed by itself fails again: the step is not tried again at once. The schedule does so later.
    """
    shard, first = next(iter(reasons.items()))
    others = f" (and {len(reasons) - 1} more, all in this event's table)" if len(reasons) > 1 else ""
    return dg.Failure(
        f"{summary}: {shard}: {first}{others}",
        metadata={"shards": markdown_table(["shard", "reason"], reasons.items())},
        allow_retries=False,
    )
