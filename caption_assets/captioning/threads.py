"""Blocking calls in daemon threads: a call that hangs delays neither the event loop nor the exit."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

CANCEL_SECONDS = 8.0
"""Maximum wait of a canceled task for its call. With a slow store a run still stops within 30 s."""


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a daemon thread. A canceled task does not wait for it."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # a canceled task must not cancel the thread's future
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.set_result(context.run(partial(call, *args, **kwargs)))
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=work, name=getattr(call, "__name__", "call"), daemon=True).start()
    return await asyncio.wrap_future(outcome)


async def to_thread_uncancelled(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a daemon thread. A canceled task still waits for the call, for at most ``CANCEL_SECONDS``.

    A call that takes longer continues in its thread until the process ends. Stores write an object completely or not at
    all, so an interrupted write leaves nothing behind.
    """
    calling = asyncio.ensure_future(in_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait([calling], timeout=CANCEL_SECONDS)
        raise
