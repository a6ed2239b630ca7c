"""Blocking calls made from the event loop, in daemon threads: one that hangs delays neither the loop nor the exit."""

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
"""Maximum wait of a canceled task for its call. With it a stop stays below 30 s, however slow the store is."""


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a daemon thread. A canceled task does not wait for it."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # so that a canceled task leaves the thread a future that it can resolve
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.set_result(context.run(partial(call, *args, **kwargs)))
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=work, name=getattr(call, "__name__", "call"), daemon=True).start()
    return await asyncio.wrap_future(outcome)


async def to_thread_uncancelled(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a daemon thread. A canceled task waits for its end too, for at most ``CANCEL_SECONDS``.

    A call that takes longer goes on in its thread until the process ends. Stores write each object whole or not at all,
    so that a write that is cut off there leaves nothing behind.
    """
    calling = asyncio.ensure_future(in_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait([calling], timeout=CANCEL_SECONDS)
        raise
