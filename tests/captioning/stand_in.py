"""A stand-in for the engine, of the same interface: its answers follow from pixels and prompt, at no cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

from caption_assets.captioning.admission import Load
from caption_assets.captioning.budget import FrameGrid, visual_tokens
from caption_assets.captioning.recipe import SamplingParams
from caption_assets.captioning.request import Completion, Request, RequestFailed
from caption_assets.models.variants import SAMPLE, PixelLimits

WORDS = ("amber", "birch", "cloud", "delta", "ember", "fjord", "grove", "hazel", "inlet", "jetty", "knoll", "lotus")


class StandIn:
    """Answers every request after a moment.

    Args:
        asked: told of each request.
        seconds: until it answers.
        fails: whether a request gets no answer.
        context: longest prompt and answer together; a token of text is a character.
        cached: share of the cacheable tokens that come from the prefix cache.
    """

    resent = 0
    is_hybrid = False
    special_tokens: frozenset[str] = frozenset()
    max_video_tokens = 10**9
    factor = SAMPLE.pixels.factor
    capacity = Load(16, 10**9, 10**12, 10**12)

    def __init__(
        self,
        asked: Callable[[Request], None] = lambda _: None,
        *,
        seconds: float = 0.0,
        fails: Callable[[Request], bool] = lambda _: False,
        context: int = 2048,
        cached: float = 1.0,
    ) -> None:
        self._cached = cached
        self.context = context
        self._asked = asked
        self._seconds = seconds
        self._fails = fails

    async def complete(self, request: Request) -> Completion:
        self._asked(request)
        await asyncio.sleep(self._seconds)
        if self._fails(request):
            raise RequestFailed("refused", "the stand-in was told to fail")
        said = sha256(request.frames.pixels.tobytes() + request.prompt.encode()).digest()
        words = [word for _, word in sorted(zip(said, WORDS, strict=False))][: 9 + said[0] % 3]  # none twice: no flag
        limit = request.generation.max_output_tokens
        frames, height, width, _ = request.frames.pixels.shape
        video = visual_tokens(FrameGrid(frames, height, width), SAMPLE.pixels.factor)
        cached = int(self._cached * video) if request.is_cached else 0
        return Completion(
            " ".join(words[:limit]),
            "stop" if len(words) <= limit else "length",
            len(request.prompt) + video,
            cached,
            min(len(words), limit),
            cacheable_tokens=video,
        )

    def load(self, grid: FrameGrid, video_tokens: int, text_tokens: int) -> Load:
        return Load(1, text_tokens, 0, grid.bytes)

    def limits(self, pixels: PixelLimits) -> PixelLimits:
        return pixels

    def resolve(self, generation: SamplingParams) -> SamplingParams:
        return generation

    def render(self, instruction: str) -> str:
        return instruction

    def text_tokens(self, prompt: str) -> int:
        return len(prompt)

    async def video_tokens(self, grid: FrameGrid, fps: float) -> int:
        return visual_tokens(grid, SAMPLE.pixels.factor)


@asynccontextmanager
async def start_stand_in(engine: StandIn, started: Callable[[], None] = lambda: None) -> AsyncIterator[Any]:
    """What ``start_engine`` is to the engine; ``started`` is told."""
    started()
    yield engine
