"""Many windows through one engine: they flow in as there is room for them and out as they finish."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable

from caption_assets.captioning.admission import Admission
from caption_assets.captioning.decoding import Decoder
from caption_assets.captioning.engine import EngineError
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.rows import Problem, uncaptioned
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.task import Captioned, Task
from caption_assets.captioning.two_stage import Captioner, Plan, Said, load_of
from caption_assets.errors import as_project_error


async def caption(
    supervisor: EngineSupervisor,
    recipe: Recipe,
    decoder: Decoder,
    tasks: AsyncIterable[Task],
    emit: Callable[[Captioned], Awaitable[None]],
    *,
    with_stage2: bool,
) -> None:
    """Caption every task's window, stage 1 unless the task brings it with a caption, then stage 2 if wanted.

    A window that fails gets rows that say why, and stops no other.

    Args:
        supervisor: the engine.
        recipe: what captions are made with; its model is the engine's.
        decoder: gives the windows' frames.
        tasks: taken as there is room; windows of one clip one after the other.
        emit: given each result as it is there, in no order. What it raises ends the whole.
        with_stage2: whether stage 2 is wanted.

    Raises:
        EngineError: if there is no engine any more.
    """
    admission = Admission(supervisor.engine.capacity)
    captioner = Captioner(supervisor, recipe, decoder, with_stage2=with_stage2)

    async def one(task: Task, plan: Plan | Problem, before: Said | None, said: Said) -> None:
        try:
            result = await captioner.run(task, plan, before, said)
        except EngineError:
            raise
        except Exception as error:  # a fault of this program in one window stops no other
            problem = Problem("unexpected", str(as_project_error(error)))
            logging.getLogger(__name__).exception("window %s of %s", task.window.window_id, task.window.clip_key)
            result = uncaptioned(recipe, task, problem, with_stage2=with_stage2)
        finally:
            admission.leave(load_of(plan))
        await emit(result)

    try:
        async with asyncio.TaskGroup() as group:
            last: tuple[Task, Said] | None = None
            async for task in tasks:
                plan, said = await captioner.plan(task), Said()
                await admission.enter(load_of(plan))
                before = _before(task, last)
                group.create_task(one(task, plan, before, said))
                last = task, said
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed  # whichever came first, it ended the others


def _before(task: Task, last: tuple[Task, Said] | None) -> Said | None:
    """What is said of the window before it in the same clip, if there is one."""
    if task.before is not None:
        return Said(task.before)
    if last and (last[0].shard, last[0].window.clip_key) == (task.shard, task.window.clip_key):
        return last[1]
    return None
