"""Limits on the failures of a shard. Past a limit its tables are published, but nothing is made from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from caption_assets.errors import CaptionAssetsError
from caption_assets.store.tables import CLIP_MANIFEST, CaptionRow, ManifestRow, Status

MAX_UNREADABLE_FRACTION = 0.1
MAX_FAILED_FRACTION = 0.05
ALLOWANCE = 2
"""Number of failures that a small shard may have. By the binomial distribution, if 1 clip in 20 is unreadable, 9 % of
the shards of 10 clips have more than one, and 1 % have more than two."""


class TooManyFailures(CaptionAssetsError):
    """A table with more failures than its limit allows."""


@dataclass(frozen=True, slots=True)
class Failures:
    """The failures in one table of a shard."""

    failed: int
    total: int
    first: str
    """Name and error of the first failure."""

    @classmethod
    def of_manifest(cls, rows: Iterable[ManifestRow]) -> Failures:
        """The unreadable clips among all clips."""
        clips, failed, first = set(), 0, ""
        for row in rows:
            clips.add(row.clip_key)
            if row.status is Status.FAILED:
                failed, first = failed + 1, first or describe(row)
        return cls(failed, len(clips), first)

    @classmethod
    def of_captions(cls, rows: Iterable[CaptionRow]) -> Failures:
        """The windows without a caption among the windows of readable clips."""
        total, failed, first = 0, 0, ""
        for row in rows:
            if row.window_index is not None:
                total += 1
                if row.status is Status.FAILED:
                    failed, first = failed + 1, first or describe(row)
        return cls(failed, total, first)

    @property
    def fraction(self) -> float:
        """Failures as a share of the total; 0 if there is nothing that could fail."""
        return self.failed / self.total if self.total else 0.0


def describe(row: ManifestRow | CaptionRow) -> str:
    """Name and error of a failed row, for messages."""
    window = "" if row.window_index is None else f", window {row.window_index}"
    return f"{row.clip_key!r}{window}: {row.error}"


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """A limit on failures, as a fraction and as a number. Only more failures than both allow exceed it.

    The number is an allowance for small shards. It does not apply if everything failed.
    """

    fraction: float
    number: int
    settings: tuple[str, str]
    """The settings of fraction and number, for messages."""

    def allowed_fraction(self, total: int) -> float:
        """The larger of both, as a fraction of a total."""
        return max(self.fraction, self.number / total) if total else 1.0

    def exceeded(self, found: Failures) -> dict[str, float]:
        """Values of the exceeded limits, by setting. Empty if the failures are allowed."""
        limits: dict[str, float] = {self.settings[0]: self.fraction}
        if found.failed < found.total:
            limits[self.settings[1]] = self.number
        allowed = self.number if found.failed < found.total else 0
        return limits if found.fraction > self.fraction and found.failed > allowed else {}


@dataclass(frozen=True, slots=True)
class FailureLimits:
    """The limits of a shard's tables."""

    unreadable: FailureLimit = FailureLimit(
        MAX_UNREADABLE_FRACTION, ALLOWANCE, ("CAPTION_MAX_UNREADABLE_FRACTION", "CAPTION_MAX_UNREADABLE_CLIPS")
    )
    """Unreadable clips of the manifest."""
    failed: FailureLimit = FailureLimit(
        MAX_FAILED_FRACTION, ALLOWANCE, ("CAPTION_MAX_FAILED_FRACTION", "CAPTION_MAX_FAILED_WINDOWS")
    )
    """Windows of a stage without a caption. Those of unreadable clips do not count."""

    def too_many(self, table: str, found: Failures) -> str | None:
        """Error message if a table has more failures than allowed; otherwise None."""
        is_manifest = table == CLIP_MANIFEST
        if not (exceeded := (self.unreadable if is_manifest else self.failed).exceeded(found)):
            return None
        what, cause = ("clips are unreadable", "clips") if is_manifest else (f"windows of {table} failed", "cause")
        limits = " and ".join(f"{name} = {value:g}" for name, value in exceeded.items())
        return (
            f"{found.failed} of {found.total} {what}, more than {limits}; the first: {found.first}. The table is "
            f"published and can be inspected: fix the {cause} or raise {' or '.join(exceeded)}, and materialize the "
            "shard again"
        )

    def check(self, table: str, found: Failures) -> None:
        """Refuse a table with more failures than allowed.

        Raises:
            TooManyFailures: with the counts, the limits and the first failure.
        """
        if message := self.too_many(table, found):
            raise TooManyFailures(message)
