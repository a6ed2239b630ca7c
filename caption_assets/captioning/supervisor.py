"""The engine supervisor: restarts an engine that crashes, and finds the window that crashes it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType

from caption_assets.captioning.engine import CaptionEngine, EngineCrashed, EngineError
from caption_assets.captioning.engine_failure import explain_crash
from caption_assets.captioning.request import Completion, PoisonWindow, Request, RequestFailed

StartEngine = Callable[[], AbstractAsyncContextManager[CaptionEngine]]
ANSWERS_PER_LIMIT = 1000
"""Number of answers after which ``max_restarts`` more restarts are allowed: long runs contain more poison windows."""


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A request that was in progress when the engine crashed."""

    request: Request
    outcome: asyncio.Future[Completion]
    """Already done if the caller was canceled."""

    def set_result(self, completion: Completion) -> None:
        """Return an answer to the caller."""
        if not self.outcome.done():
            self.outcome.set_result(completion)

    def set_exception(self, error: BaseException) -> None:
        """Raise an error in the caller."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


class EngineSupervisor:
    """Keeps an engine running, and retries on a new engine the requests that a crash interrupted.

    After a crash new requests wait until the interrupted ones, the suspects, are retried: in groups of about the square
    root of their number, then one by one in each group that crashes the engine again. A window that crashes the engine
    is therefore found at its third crash, whatever else was in progress. It counts as poison only if a new engine then
    answers another window, the control: an engine that crashes on every window proves nothing about one of them.

    Args:
        start: starts an engine.
        max_restarts: maximum number of restarts for each ``ANSWERS_PER_LIMIT`` answers.
        on_crash: called with the reason after each crash. Its exceptions are logged.
        settings: identity of the engine's settings; see ``EngineConfig``.
    """

    settings = ""

    def __init__(
        self,
        start: StartEngine,
        *,
        max_restarts: int = 10,
        on_crash: Callable[[str], None] = lambda _: None,
        settings: str = "",
    ) -> None:
        self.settings = settings
        self._start_engine = start
        self._max_restarts = max_restarts
        self._on_crash = on_crash
        self._context: AbstractAsyncContextManager[CaptionEngine] | None = None
        self._engine: CaptionEngine | None = None
        self._error: Exception | None = None
        self._ready = asyncio.Event()
        self._suspects: list[_Suspect] = []
        self._in_progress = 0
        self._recovery: asyncio.Task[None] | None = None
        self._resent = 0
        self._answers = 0
        self._controls: dict[bool, Request] = {}
        """The last requests with an answer, with and without video."""
        self.crashes = 0
        """Number of engine crashes."""

    async def __aenter__(self) -> EngineSupervisor:
        await self._start()
        self._ready.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if recovery := self._recovery:
            recovery.cancel()
            await asyncio.wait([recovery])
        await self._stop()

    @property
    def resent(self) -> int:
        """Number of videos that were sent again because the engine's cache had evicted them."""
        return self._resent + (self._engine.resent if self._context and self._engine else 0)

    @property
    def engine(self) -> CaptionEngine:
        """The running engine, or the previous one during a restart, so that windows can be planned meanwhile.

        Raises:
            EngineError: if no engine was started yet.
        """
        if self._engine is None:
            raise EngineError("no engine was started: enter the supervisor's context first")
        return self._engine

    async def complete(self, request: Request) -> Completion:
        """Return the model's answer, from a new engine if the current one crashes.

        Raises:
            RequestFailed: if the engine cannot answer this request.
            PoisonWindow: if this request alone crashes the engine.
            EngineError: if the engine crashes too often or cannot be restarted.
        """
        while not self._ready.is_set():
            await self._ready.wait()
        if self._error:
            raise self._error
        self._in_progress += 1
        try:
            answer = await self.engine.complete(request)
            self._note_answer(request)
            return answer
        except EngineCrashed as crash:
            suspect = _Suspect(request, asyncio.get_running_loop().create_future())
            self._suspects.append(suspect)
            if self._recovery is None:
                self._ready.clear()
                self._recovery = asyncio.create_task(self._recover(str(crash)))
        finally:
            self._in_progress -= 1
        return await suspect.outcome

    async def _recover(self, reason: str) -> None:
        """Restart the engine and retry the suspects until each has an outcome, then accept new requests."""
        while self._in_progress:  # the other requests fail in the same step of the event loop
            await asyncio.sleep(0)
        suspects, self._suspects = self._suspects, []
        try:
            await self._restart(reason)
            poison: list[_Suspect] = []
            size = max(math.isqrt(len(suspects)), 1)
            for first in range(0, len(suspects), size):
                group = suspects[first : first + size]
                for suspect in await self._retry(group):
                    poison += await self._retry([suspect])
            if poison:
                await self._check_control(poison, reason)
            for suspect in poison:
                suspect.set_exception(PoisonWindow(self.settings))
        except Exception as error:  # callers must not wait forever
            self._error = error
            if not isinstance(error, EngineError):  # no window caused it
                self._error = EngineError(f"the engine cannot be restarted: {type(error).__name__}: {error}")
                self._error.__cause__ = error
            for suspect in suspects:
                suspect.set_exception(self._error)
        finally:
            self._recovery = None
            self._ready.set()

    async def _retry(self, group: Sequence[_Suspect]) -> list[_Suspect]:
        """Retry only these suspects. Return those that a crash interrupted again; the engine is then restarted."""
        answers = await asyncio.gather(
            *(self.engine.complete(suspect.request) for suspect in group), return_exceptions=True
        )
        crashes = []
        for suspect, answer in zip(group, answers, strict=True):
            if isinstance(answer, EngineCrashed):
                crashes.append((suspect, str(answer)))
            elif isinstance(answer, BaseException):
                suspect.set_exception(answer)
            else:
                suspect.set_result(answer)
                self._note_answer(suspect.request)
        if crashes:
            await self._restart(crashes[0][1])
        return [suspect for suspect, _ in crashes]

    def _note_answer(self, request: Request) -> None:
        self._answers += 1
        self._controls[request.frames is not None] = request

    async def _check_control(self, poison: Sequence[_Suspect], reason: str) -> None:
        """Check that the engine still answers a window that it answered before, with video if a poison one has video.

        Raises:
            EngineError: if it crashes, or no window was answered yet: then no window is poison.
        """
        has_video = any(suspect.request.frames is not None for suspect in poison)
        control = self._controls.get(has_video, self._controls.get(True))
        crashes = "on every window: none was answered in this run"
        if control is not None:
            try:
                await self.engine.complete(control)
            except EngineCrashed as crash:
                reason, crashes = str(crash), "also on a window that was answered before"
            except RequestFailed:
                return  # it did not crash
            else:
                return
        raise EngineError(
            f"the engine crashes {crashes} ({explain_crash(reason)}). {len(poison)} windows crashed it alone, but do "
            "not count as poison: fix the cause, and materialize again"
        )

    async def _restart(self, reason: str) -> None:
        """Stop the crashed engine and start a new one."""
        self.crashes += 1
        try:
            self._on_crash(reason)
        except Exception:  # reporting a crash must not end the run
            logging.getLogger(__name__).exception("the callback for an engine's crash failed")
        await self._stop()
        if self.crashes > self._max_restarts * (1 + self._answers // ANSWERS_PER_LIMIT):
            raise EngineError(
                f"the engine crashed {self.crashes} times in this run of {self._answers} answers; "
                f"CAPTION_MAX_ENGINE_RESTARTS = {self._max_restarts} is the limit for each {ANSWERS_PER_LIMIT}. The "
                f"last crash: {explain_crash(reason)}. Published tables are kept: fix the cause, and materialize again"
            )
        await self._start()

    async def _start(self) -> None:
        self._context = self._start_engine()
        try:
            self._engine = await self._context.__aenter__()
        except BaseException:
            self._context = None
            raise

    async def _stop(self) -> None:
        self._resent = self.resent
        context, self._context = self._context, None
        if context:
            await context.__aexit__(None, None, None)
