"""The captioner: runs window jobs through their stages on one engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable
from itertools import count

from caption_assets.captioning.admission import Admission
from caption_assets.captioning.decoding import Decoder
from caption_assets.captioning.engine import EngineError
from caption_assets.captioning.gathering import Gathering
from caption_assets.captioning.planner import Planner
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stage_run import StageRun
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import JobStatus, WindowJob
from caption_assets.errors import as_project_error


async def caption(
    supervisor: EngineSupervisor,
    recipe: Recipe,
    decoder: Decoder,
    jobs: AsyncIterable[WindowJob],
    emit: Callable[[WindowJob], Awaitable[None]],
) -> None:
    """Caption windows concurrently on one engine. A window starts when the engine has room for it.

    A failed window gets rows with the error; the other windows continue.

    Args:
        supervisor: runs the engine.
        recipe: model, stages and sampling. The engine must serve this model.
        decoder: decodes the windows' frames.
        jobs: read as the engine has room. The windows of a clip must be consecutive.
        emit: called with each finished job, in any order. An exception that it raises ends the run.

    Raises:
        EngineError: if the engine cannot be restarted.
    """
    admission = Admission(supervisor.engine.capacity)
    captioner = Captioner(supervisor, recipe, decoder)

    async def one(job: WindowJob) -> None:
        try:
            await captioner.run(job)
        except EngineError:
            raise
        except Exception as error:  # a bug must not stop the other windows
            logging.getLogger(__name__).exception(
                "captioning window %s of %s failed", job.window.window_id, job.window.clip_key
            )
            job.fail(recipe, "unexpected", str(as_project_error(error)))
        finally:
            captioner.gathering.remove(job)
            admission.release(job.load)
        await emit(job)

    try:
        async with asyncio.TaskGroup() as group:
            async for job in jobs:
                await captioner.plan(job)
                await admission.acquire(job.load)
                job.status = JobStatus.RUNNING
                captioner.gathering.add(job)
                group.create_task(one(job))
    except ExceptionGroup as failed:
        raise _first(failed) from failed  # the first one canceled the other tasks


class Captioner:
    """Captions windows independently: a failed window gets rows with the error, and the others continue."""

    def __init__(self, supervisor: EngineSupervisor, recipe: Recipe, decoder: Decoder) -> None:
        self._supervisor = supervisor
        self._recipe = recipe
        self._decoder = decoder
        self._planner = Planner(supervisor, recipe)
        self._replicas = count()
        self.gathering = Gathering()

    async def plan(self, job: WindowJob) -> None:
        """Choose the number and size of a window's frames, or set the job's problem; see ``Planner.plan``."""
        await self._planner.plan(job)

    async def run(self, job: WindowJob) -> None:
        """Caption the missing stages of a planned job, each as soon as the stages that it needs have rows.

        Raises:
            EngineError: if the engine cannot be restarted.
        """
        job.replica = next(self._replicas)
        try:
            async with asyncio.TaskGroup() as group:
                for stage in job.missing:
                    group.create_task(self._run_stage(job, stage))
        except ExceptionGroup as failed:
            raise _first(failed) from failed

    async def _run_stage(self, job: WindowJob, stage: Stage) -> None:
        await job.wait_for(stage.needs)
        if stage.name in job.rows:  # reused: an earlier run made it from the same texts
            return
        run = StageRun(self._supervisor, self._recipe, self._decoder, self._planner, self.gathering, job, stage)
        try:
            row = await run.row()
        except EngineError:
            raise
        except Exception as error:  # a bug must not stop the other windows
            logging.getLogger(__name__).exception(
                "%s of window %s of %s failed", stage.name, job.window.window_id, job.window.clip_key
            )
            row = job.failed_row(self._recipe, stage, "unexpected", str(as_project_error(error)))
        job.add_row(stage, row)


def _first(failed: ExceptionGroup[Exception]) -> Exception:
    """The first exception in a group, or in the groups that it contains."""
    first = failed.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
