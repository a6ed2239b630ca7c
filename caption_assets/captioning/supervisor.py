"""An engine that is rebuilt when it dies, and the search for the window that kills it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType

from caption_assets.captioning.engine import CaptionEngine, EngineDied, EngineError
from caption_assets.captioning.engine_failure import explain_crash
from caption_assets.captioning.request import Completion, PoisonWindow, Request, RequestFailed

StartEngine = Callable[[], AbstractAsyncContextManager[CaptionEngine]]
ANSWERS = 1000
"""After so many answers as many deaths are put up with again: a long run may meet more poison than a broken engine."""


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A request that was under way when the engine died."""

    request: Request
    outcome: asyncio.Future[Completion]
    """Done already where nobody waits for it any more."""

    def answer(self, completion: Completion) -> None:
        """Give it its answer."""
        if not self.outcome.done():
            self.outcome.set_result(completion)

    def fail(self, error: BaseException) -> None:
        """Give it the reason why there is no answer."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


class EngineSupervisor:
    """Keeps an engine running: what was under way when one died is asked of the next.

    After a death nothing new is let in until the suspects have been asked again, in groups of about the square root of
    their number, and those of a group that kills the engine again one by one. So a window that kills it is found at
    its third death, whatever else was under way. It is blamed only if an engine that was built after these deaths
    answers another window, the control: an engine that crashes on everything proves nothing about a window.

    Args:
        start: builds an engine.
        max_restarts: deaths that are put up with, as many again for each ``ANSWERS`` answers; the next is an error.
        on_death: called after each death, with its reason; what it raises is logged.
        settings: the identity of the engine's settings; see ``EngineConfig``.
    """

    settings = ""

    def __init__(
        self,
        start: StartEngine,
        *,
        max_restarts: int = 10,
        on_death: Callable[[str], None] = lambda _: None,
        settings: str = "",
    ) -> None:
        self.settings = settings
        self._start = start
        self._max_restarts = max_restarts
        self._on_death = on_death
        self._block: AbstractAsyncContextManager[CaptionEngine] | None = None
        self._engine: CaptionEngine | None = None
        self._error: Exception | None = None
        self._open = asyncio.Event()
        self._suspects: list[_Suspect] = []
        self._under_way = 0
        self._recovery: asyncio.Task[None] | None = None
        self._resent = 0
        self._answers = 0
        self._control: Request | None = None
        """The request that was answered last."""
        self.deaths = 0
        """Engines that have died."""

    async def __aenter__(self) -> EngineSupervisor:
        await self._build()
        self._open.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if recovery := self._recovery:
            recovery.cancel()
            await asyncio.wait([recovery])
        await self._end()

    @property
    def resent(self) -> int:
        """Videos that had to be sent again, since an engine's cache had let them go."""
        return self._resent + (self._engine.resent if self._block and self._engine else 0)

    @property
    def engine(self) -> CaptionEngine:
        """The engine that runs at present, or the last one that did: windows are planned while another is built.

        Raises:
            EngineError: if none was ever started.
        """
        if self._engine is None:
            raise EngineError("the engine is asked before it was started")
        return self._engine

    async def complete(self, request: Request) -> Completion:
        """Have the model answer a request, on another engine if one dies.

        Raises:
            RequestFailed: as the engine says.
            PoisonWindow: if the engine dies of this request alone.
            EngineError: if engines have died too often, or another does not start.
        """
        while not self._open.is_set():
            await self._open.wait()
        if self._error:
            raise self._error
        self._under_way += 1
        try:
            answer = await self.engine.complete(request)
            self._answers += 1
            self._control = request
            return answer
        except EngineDied as death:
            suspect = _Suspect(request, asyncio.get_running_loop().create_future())
            self._suspects.append(suspect)
            if self._recovery is None:
                self._open.clear()
                self._recovery = asyncio.create_task(self._recover(str(death)))
        finally:
            self._under_way -= 1
        return await suspect.outcome

    async def _recover(self, reason: str) -> None:
        """Ask the suspects again until each has its outcome, then let others in."""
        while self._under_way:  # the others learn of the death at the same time
            await asyncio.sleep(0)
        suspects, self._suspects = self._suspects, []
        try:
            await self._rebuild(reason)
            killers: list[_Suspect] = []
            size = max(math.isqrt(len(suspects)), 1)
            for first in range(0, len(suspects), size):
                group = suspects[first : first + size]
                for suspect in await self._unanswered(group):
                    killers += await self._unanswered([suspect])
            if killers:
                await self._ask_control(len(killers), reason)
            for killer in killers:
                killer.fail(PoisonWindow(self.settings))
        except Exception as error:  # whatever it is, those who wait must learn of it
            self._error = error
            if not isinstance(error, EngineError):  # no window's fault
                self._error = EngineError(f"there is no engine any more: {type(error).__name__}: {error}")
                self._error.__cause__ = error
            for suspect in suspects:
                suspect.fail(self._error)
        finally:
            self._recovery = None
            self._open.set()

    async def _unanswered(self, group: Sequence[_Suspect]) -> list[_Suspect]:
        """Ask a group again, alone; returns those that got no answer because the engine died, and builds another."""
        answers = await asyncio.gather(
            *(self.engine.complete(suspect.request) for suspect in group), return_exceptions=True
        )
        deaths = []
        for suspect, answer in zip(group, answers, strict=True):
            if isinstance(answer, EngineDied):
                deaths.append((suspect, str(answer)))
            elif isinstance(answer, BaseException):
                suspect.fail(answer)
            else:
                suspect.answer(answer)
                self._control = suspect.request
        if deaths:
            await self._rebuild(deaths[0][1])
        return [suspect for suspect, _ in deaths]

    async def _ask_control(self, killers: int, reason: str) -> None:
        """Have the present engine answer a window that was answered before.

        Raises:
            EngineError: if there is none, or the engine crashes on it as well: no window is to blame.
        """
        crashes = "on everything that it was asked: it has answered nothing in this run"
        if self._control is not None:
            try:
                await self.engine.complete(self._control)
            except EngineDied as death:
                reason, crashes = str(death), "also on a window that was answered before"
            except RequestFailed:
                return  # it lives
            else:
                return
        raise EngineError(
            f"the engine crashes {crashes} ({explain_crash(reason)}). {killers} windows crashed it alone, and are not "
            "blamed: fix the cause, and materialize again"
        )

    async def _rebuild(self, reason: str) -> None:
        """End the dead engine and build another."""
        self.deaths += 1
        try:
            self._on_death(reason)
        except Exception:  # who is told of a crash does not end the run
            logging.getLogger(__name__).exception("the callback for an engine's crash failed")
        await self._end()
        if self.deaths > self._max_restarts * (1 + self._answers // ANSWERS):
            raise EngineError(
                f"the engine has died {self.deaths} times in this run of {self._answers} answers, more than "
                f"CAPTION_MAX_ENGINE_RESTARTS = {self._max_restarts} allows for each {ANSWERS}; the last time: "
                f"{explain_crash(reason)}. What was published stays: fix the cause, and materialize again"
            )
        await self._build()

    async def _build(self) -> None:
        self._block = self._start()
        try:
            self._engine = await self._block.__aenter__()
        except BaseException:
            self._block = None
            raise

    async def _end(self) -> None:
        self._resent = self.resent
        block, self._block = self._block, None
        if block:
            await block.__aexit__(None, None, None)
