"""What is asked of the captioner: one row of a manifest; and what comes of it: a row for each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from caption_assets.captioning.prefix_cache import NO_HITS, CacheHits
from caption_assets.store.tables import CaptionRow, ManifestRow, Status


@dataclass(frozen=True, slots=True)
class Task:
    """One row of a manifest to be captioned."""

    window: ManifestRow
    read: Callable[[], Iterable[bytes]]
    """Fetches the clip in pieces."""
    stage1: CaptionRow | None = None
    """The stage-1 row, where that was made before and only stage 2 is wanted."""
    shard: str = ""
    """Which shard's manifest."""
    number: int = 0
    """Which row of it."""
    tried: tuple[int, int] = (0, 0)
    """Requests that earlier runs made for the rows of stage 1 and 2."""
    before: tuple[str | None, str | None] | None = None
    """Captions of the window before it in the same clip, where these were made before; None where they were not."""


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Seconds, added up over windows: these are worked on side by side, so that it is more than has passed."""

    decode: float = 0.0
    """Clips were fetched and decoded."""
    stage1: float = 0.0
    """Answers of the engine were waited for."""
    stage2: float = 0.0
    """Likewise."""
    store: float = 0.0
    """Checkpoints and tables were written."""

    def __add__(self, other: StageSeconds) -> StageSeconds:
        return StageSeconds(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


NO_SECONDS = StageSeconds()


@dataclass(frozen=True, slots=True)
class Captioned:
    """What came of a task."""

    task: Task
    stage1: CaptionRow
    stage2: CaptionRow | None
    """None where only stage 1 was wanted."""
    spent: StageSeconds = NO_SECONDS
    hits: CacheHits = NO_HITS
    """Of stage 2 in the prefix cache, where the engine was shown the same frames in stage 1."""

    @property
    def ok(self) -> bool:
        """Whether the window has all captions that were wanted."""
        return all(row.status is Status.OK for row in (self.stage1, self.stage2) if row)
