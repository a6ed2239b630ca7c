"""The rows of the Python API: one for each stage of each window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from caption_assets.captioning.stages import Stage
from caption_assets.captioning.window_job import WindowJob
from caption_assets.store.tables import ManifestRow, Status


@dataclass(frozen=True, slots=True)
class WindowCaption:
    """One stage's answer about one window of a clip, or the reason why there is none."""

    clip: str
    """Path or URL of the clip, as given; in a folder, tar or list, with the clip's name in it."""
    window: int | None
    """Number of the window within its clip, from 0; None if the clip is unreadable."""
    start_seconds: float | None
    """Start of the window, in seconds from the beginning of the clip."""
    end_seconds: float | None
    """End of the window, in seconds from the beginning of the clip."""
    stage: str | None
    """Name of the stage; None if the clip is unreadable: it has this one row."""
    status: Status
    """``ok`` or ``failed``; also equal to these strings."""
    caption: str | None = None
    """The answer: text, JSON as text, or a choice; None if it failed."""
    probabilities: Mapping[str, float] | None = None
    """Probability of each choice, for a stage with choices; None otherwise."""
    flags: tuple[str, ...] = ()
    """Quality flags of the caption."""
    finish_reason: str | None = None
    """``stop`` if the answer is complete, ``length`` if it was cut off at the output limit."""
    error_kind: str | None = None
    """Kind of the error, such as ``not_a_video``; None without an error."""
    error: str | None = None
    """The reason why there is no caption; None without an error."""
    model: str | None = None
    """Hub id of the model; None if the clip is unreadable."""


def caption_of(job: WindowJob, stage: Stage) -> WindowCaption:
    """The row of a stage of a finished window."""
    row = job.row(stage)
    return WindowCaption(
        clip=row.clip_key,
        window=row.window_index,
        start_seconds=row.start_seconds,
        end_seconds=row.end_seconds,
        stage=stage.name,
        status=row.status,
        caption=row.caption,
        probabilities=row.probabilities,
        flags=tuple(row.flags),
        finish_reason=row.finish_reason,
        error_kind=row.error_kind,
        error=row.error,
        model=row.model,
    )


def unreadable(row: ManifestRow) -> WindowCaption:
    """The row of an unreadable clip."""
    return WindowCaption(
        row.clip_key, None, None, None, None, Status.FAILED, error_kind=row.error_kind, error=row.error
    )
