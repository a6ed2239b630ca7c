"""A fake engine with the interface of ``CaptionEngine``: its answers are hashes of pixels and prompt, as words.

JSON has these words as its strings, and a choice has a probability for each of its words.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import cycle
from typing import Any

from caption_assets.captioning.admission import Load
from caption_assets.captioning.budget import FrameGrid, visual_tokens
from caption_assets.captioning.output import ChoiceOutput, JsonOutput
from caption_assets.captioning.request import Completion, Request, RequestFailed
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.models.variants import SAMPLE, PixelLimits

WORDS = ("amber", "birch", "cloud", "delta", "ember", "fjord", "grove", "hazel", "inlet", "jetty", "knoll", "lotus")


class FakeEngine:
    """An engine that answers each request after a delay.

    Args:
        on_request: called with each request; its exceptions are the engine's.
        seconds: delay before an answer.
        fails: whether a request is refused.
        context: maximum length of prompt and answer together; each character of text is one token.
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
        on_request: Callable[[Request], None] = lambda _: None,
        *,
        seconds: float = 0.0,
        fails: Callable[[Request], bool] = lambda _: False,
        context: int = 2048,
        cached: float = 1.0,
    ) -> None:
        self._cached = cached
        self.context = context
        self._on_request = on_request
        self._seconds = seconds
        self._fails = fails

    async def complete(self, request: Request) -> Completion:
        self._on_request(request)
        await asyncio.sleep(self._seconds)
        if self._fails(request):
            raise RequestFailed("refused", "refused by the fake engine")
        request.on_prefilled()
        pixels = b"" if request.frames is None else request.frames.pixels.tobytes()
        digest = sha256(pixels + request.prompt.encode()).digest()
        words = [word for _, word in sorted(zip(digest, WORDS, strict=False))][: 9 + digest[0] % 3]  # distinct: no flag
        limit = request.generation.max_output_tokens
        probabilities = None
        if isinstance(request.output, JsonOutput):
            words = json.dumps(json_value(request.output.schema, cycle(words))).split()
        elif isinstance(request.output, ChoiceOutput):
            weights = {choice: 1 + byte for choice, byte in zip(request.output.choices, digest, strict=False)}
            probabilities = {choice: weight / sum(weights.values()) for choice, weight in weights.items()}
            words = [max(probabilities, key=probabilities.__getitem__)]
        video = 0
        if request.frames is not None:
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
            probabilities=probabilities,
        )

    def load(self, grid: FrameGrid, video_tokens: int, text_tokens: int) -> Load:
        return Load(1, text_tokens, 0, grid.bytes)

    def limits(self, pixels: PixelLimits) -> PixelLimits:
        return pixels

    def resolve(self, generation: SamplingParams) -> SamplingParams:
        return generation

    def render(self, instruction: str, *, video: bool = True) -> str:
        return instruction

    def text_tokens(self, prompt: str, *, video: bool = True) -> int:
        return len(prompt)

    async def video_tokens(self, grid: FrameGrid, fps: float) -> int:
        return visual_tokens(grid, SAMPLE.pixels.factor)


def json_value(schema: Mapping[str, Any], words: Iterator[str]) -> object:
    """A value of a schema; its strings are the next words."""
    match schema:
        case {"type": "object"}:
            return {name: json_value(member, words) for name, member in schema.get("properties", {}).items()}
        case {"type": "array"}:
            return [json_value(schema["items"], words)]
        case {"type": "integer" | "number"}:
            return len(next(words))
        case {"type": "boolean"}:
            return len(next(words)) == 5
        case _:
            return next(words)


class SequentialEngine(FakeEngine):
    """An engine with room for one window at a time."""

    capacity = replace(FakeEngine.capacity, windows=1)


@asynccontextmanager
async def start_fake_engine(engine: FakeEngine, on_start: Callable[[], None] = lambda: None) -> AsyncIterator[Any]:
    """The counterpart of ``start_engine``; ``on_start`` is called first."""
    on_start()
    yield engine
