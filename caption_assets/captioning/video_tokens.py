"""The number of a video's tokens in a prompt: computed for Qwen's processors, measured for all others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

from caption_assets.captioning.budget import FrameGrid, patch_times, visual_tokens

QWEN = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"})
"""Model types whose processors keep the frames' size and number, which then determine the number of tokens."""
TIMED = QWEN - {"qwen2_vl", "qwen2_5_vl"}
"""Model types whose prompts give the time of each temporal patch as text."""
MAX_MEASURED = 4096
"""Maximum number of stored measurements, one for each size, number and rate of frames."""

Count = Callable[[FrameGrid, float], Awaitable[int]]
"""Tokens of a video by its grid and its frames per second."""


def patch_factor(config: Any) -> int | None:
    """Side in pixels of the square that is one token, from a model's configuration; None if it is not known."""
    vision = getattr(config, "vision_config", None)
    if config.model_type not in QWEN or vision is None or vision.temporal_patch_size != 2:
        return None
    return int(vision.patch_size) * int(vision.spatial_merge_size)


class VideoTokens:
    """Counts the tokens of videos.

    Args:
        model_type: selects the computation.
        factor: side in pixels of the square that is one token.
        text_tokens: returns the number of tokens of a text.
        measure: runs the model's processor on a video and returns the number of tokens.
    """

    def __init__(self, model_type: str, factor: int, text_tokens: Callable[[str], int], measure: Count) -> None:
        self._is_timed = model_type in TIMED
        self._factor = factor
        self._text_tokens = lru_cache(maxsize=1024)(text_tokens)
        self._measure = measure
        self._measured: dict[tuple[FrameGrid, float], int] = {}
        self.is_exact = model_type in QWEN
        """Whether tokens are computed, not measured."""

    async def count(self, grid: FrameGrid, fps: float) -> int:
        """Number of tokens of a video with this size, number and rate of frames.

        Raises:
            RequestFailed: if the model's processor refuses such a video.
        """
        return self.computed(grid, fps) if self.is_exact else await self.measured(grid, fps)

    def computed(self, grid: FrameGrid, fps: float) -> int:
        """The number of tokens, computed as Qwen's processors do."""
        visual = visual_tokens(grid, self._factor)
        if not self._is_timed:
            return visual
        times = (self._text_tokens(f"<{time:.1f} seconds>") for time in patch_times(grid.frames, fps))
        return visual + sum(count + 2 for count in times)  # each patch has a start token and an end token

    async def measured(self, grid: FrameGrid, fps: float) -> int:
        """The number of tokens after the model's processor, measured once for each size, number and rate of frames."""
        if (grid, fps) not in self._measured:
            if len(self._measured) >= MAX_MEASURED:
                self._measured.clear()
            self._measured[grid, fps] = await self._measure(grid, fps)
        return self._measured[grid, fps]
