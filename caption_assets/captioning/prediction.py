"""The prediction of the work that a manifest's rows will be, made without an engine."""

from __future__ import annotations

from caption_assets.captioning.budget import FrameTooNarrow, fit, visual_tokens
from caption_assets.captioning.decoding import require
from caption_assets.models.variants import Variant
from caption_assets.store.tables import ManifestRow, Status
from caption_assets.video.frame_sampling import FrameSampling, frame_count


def predicted_tokens(row: ManifestRow, variant: Variant, sampling: FrameSampling) -> int:
    """Visual tokens of a row's window by the model's pixel limits; 0 if it will not be shown to the model.

    An upper bound for Qwen's processors: where the context has no room for it beside its prompt, a window is scaled
    down further. For other processors it is an estimate; the engine measures their tokens when it runs.
    """
    if row.status is Status.FAILED:
        return 0
    seconds = require(row.end_seconds) - require(row.start_seconds)
    frames = frame_count(seconds, require(row.end_frame) - require(row.start_frame), sampling)
    try:
        grid = fit(frames, require(row.height), require(row.width), variant.pixels)
    except FrameTooNarrow:
        return 0
    return visual_tokens(grid, variant.pixels.factor)
