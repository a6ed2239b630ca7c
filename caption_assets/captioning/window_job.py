"""The window job: one window on its way through the stages, from its row in the manifest to a row for each stage."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from caption_assets.captioning.admission import NO_LOAD, Load
from caption_assets.captioning.budget import FrameGrid, NoRoom
from caption_assets.captioning.prefix_cache import CacheHits
from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.quality import replaces
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import PoisonWindow, RequestFailed
from caption_assets.captioning.stages import Stage
from caption_assets.store.tables import CaptionRow, ManifestRow, Status
from caption_assets.video.decode import Frames

DECODE = "decode"
"""Key of the seconds for reading and decoding clips."""
STORE = "store"
"""Key of the seconds for writing checkpoints and tables."""
NO_VIDEO = FrameGrid(0, 0, 0)
UPSTREAM_FAILED = "upstream_failed"
"""Error kind of a row whose stage needs a text that failed."""


class JobStatus(StrEnum):
    """Progress of a window job."""

    WAITING = "waiting"
    RUNNING = "running"
    """The window is admitted: it is decoded and captioned."""
    FINISHED = "finished"
    """Every stage has a row."""


class Origin(StrEnum):
    """Origin of a row."""

    REUSED = "reused"
    """An earlier run made it."""
    FRESH = "fresh"
    """This run made it, with a caption or an error."""
    UNCAPTIONABLE = "uncaptionable"
    """No request was possible: the clip is unreadable, or a needed stage has no caption. Not stored in checkpoints."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """The row of one stage and its origin."""

    row: CaptionRow
    origin: Origin


@dataclass(slots=True, eq=False)
class JobVideo:
    """A window's video in one size, which its stages share."""

    grid: FrameGrid
    frames: asyncio.Future[Frames] | None = None
    """The decoded frames, or the error; None until they are needed."""
    is_cached: bool = False
    """Whether the engine has received the frames."""
    crashes: int = 0
    """Number of the run's engine crashes before the engine received the frames. Another crash empties its caches."""
    prefilled: asyncio.Event | None = None
    """Set when the first request with these frames has put them into the engine's caches, or has failed. None until
    there is such a request."""
    stages: set[str] = field(default_factory=set)
    """Names of the stages whose last request had this video."""


@dataclass(slots=True, eq=False)
class WindowJob:
    """One window with its state and results. Keys of mappings are names of stages."""

    window: ManifestRow
    read: Callable[[], Iterable[bytes]]
    """Reads the clip in pieces."""
    stages: tuple[Stage, ...]
    """The stages to caption, in the recipe's order."""
    shard: str = ""
    number: int = 0
    """Position in the shard's manifest."""
    rows: dict[str, StageRow] = field(default_factory=dict)
    """Rows of these stages and of stages that they need."""
    earlier_attempts: dict[str, int] = field(default_factory=dict)
    """Number of requests of earlier runs for the missing rows."""
    outdated: dict[str, CaptionRow] = field(default_factory=dict)
    """Rows of earlier runs to regenerate, because newer quality rules flag them. A row is kept if its new caption is
    not better."""
    reuse: Callable[[WindowJob], None] = lambda job: None
    """Adds reused rows. Called after each added row, since it may complete what a later stage needs."""
    previous: WindowJob | None = None
    """The previous window of the same clip."""

    status: JobStatus = field(default=JobStatus.WAITING, init=False)
    problem: RequestFailed | None = field(default=None, init=False)
    """The error that prevents any request."""
    poison: PoisonWindow | None = field(default=None, init=False)
    """Set if the video crashes the engine: no other stage shows it."""
    wanted: FrameGrid = field(default=NO_VIDEO, init=False)
    """The video by frame sampling and the pixel limits of one frame."""
    whole: FrameGrid = field(default=NO_VIDEO, init=False)
    """``wanted``, reduced to the pixel limits of a window."""
    reduced: dict[str, FrameGrid] = field(default_factory=dict, init=False)
    """Videos that were reduced after a request failed, by stage; also of the stages that start with them."""
    load: Load = field(default=NO_LOAD, init=False)
    replica: int = field(default=0, init=False)
    """Number of the window in the run. It selects one of the engine's replicas."""
    attempts: Counter[str] = field(default_factory=Counter, init=False)
    """Number of requests of this run, by stage."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float), init=False)
    """Seconds of waiting for the engine, by stage, and for ``DECODE``."""
    hits: dict[str, CacheHits] = field(default_factory=dict, init=False)
    """Prefix cache hits, by stage, of stages whose video was in the engine's caches."""
    _videos: dict[FrameGrid, JobVideo] = field(default_factory=dict, init=False, repr=False)
    _answers: dict[str, str | None] = field(default_factory=dict, init=False, repr=False)
    _answered: defaultdict[str, asyncio.Event] = field(
        default_factory=lambda: defaultdict(asyncio.Event), init=False, repr=False
    )
    _added: defaultdict[str, asyncio.Event] = field(
        default_factory=lambda: defaultdict(asyncio.Event), init=False, repr=False
    )

    @property
    def missing(self) -> list[Stage]:
        """The stages that have no row yet."""
        return [stage for stage in self.stages if stage.name not in self.rows]

    @property
    def ok(self) -> bool:
        """Whether the window has the captions of all stages."""
        return all(self.row(stage).status is Status.OK for stage in self.stages)

    def row(self, stage: Stage) -> CaptionRow:
        """The row of a stage that is not missing."""
        return self.rows[stage.name].row

    def current_row(self, stage: Stage) -> CaptionRow | None:
        """The row of a stage, or its outdated one while that is regenerated; None if there is neither."""
        return self.rows[stage.name].row if stage.name in self.rows else self.outdated.get(stage.name)

    def texts(self, stage: Stage) -> dict[str, str] | None:
        """The texts that a stage needs, by stage; None if one of them is missing."""
        rows = {name: self.rows[name].row for name in stage.needs if name in self.rows}
        found = {name: row.caption for name, row in rows.items() if row.caption is not None}
        return found if len(found) == len(stage.needs) else None

    def add_row(self, stage: Stage, row: CaptionRow, *, reused: bool = False) -> None:
        """Add the row of a stage. An outdated row is kept if the new one is not better."""
        earlier = self.outdated.pop(stage.name, None)
        if earlier and not _is_better(row, earlier):
            row = replace(earlier, attempts=row.attempts)  # fresh, so that a checkpoint records the attempt
        origin = Origin.REUSED if reused else Origin.FRESH
        self.rows[stage.name] = StageRow(row, origin if row.fingerprint else Origin.UNCAPTIONABLE)
        self.set_answer(stage, row.caption)
        if stage.name in self._added:
            self._added[stage.name].set()
        self.reuse(self)
        if not self.missing:
            self.status = JobStatus.FINISHED
            self._videos.clear()

    async def wait_for(self, names: Iterable[str]) -> None:
        """Wait until the stages of these names have rows."""
        for name in names:
            if name not in self.rows:
                await self._added[name].wait()

    def show(self, stage: Stage, grid: FrameGrid) -> JobVideo:
        """The window's video in one size, for a request of a stage.

        Videos of other sizes are dropped unless an unfinished stage shows them, so that memory holds at most one for
        each stage in progress.
        """
        for other in [video for video in self._videos.values() if video.grid != grid]:
            other.stages.discard(stage.name)
            if other.stages.issubset(self.rows):
                del self._videos[other.grid]
        video = self._videos.setdefault(grid, JobVideo(grid))
        video.stages.add(stage.name)
        return video

    def fail(self, recipe: Recipe, kind: str, message: str) -> None:
        """Add all missing rows with this error. Stages that need one of them get the error ``upstream_failed``."""
        while missing := self.missing:
            self.add_row(missing[0], self.failed_row(recipe, missing[0], kind, message))

    def failed_row(self, recipe: Recipe, stage: Stage, kind: str, message: str) -> CaptionRow:
        """The row of a stage with an error before any request; ``upstream_failed`` if it needs a text that failed."""
        if self.texts(stage) is None:
            return upstream_failed_row(recipe, stage, self)
        row = self.blank_row(recipe, stage, reduced=kind == NoRoom.kind)
        tried = self.earlier_attempts.get(stage.name, 0) + 1 if row.fingerprint else 0
        return replace(row, error_kind=kind, error=message, attempts=tried)

    def blank_row(self, recipe: Recipe, stage: Stage, *, reduced: bool = False, cut_off: bool = False) -> CaptionRow:
        """A failed row of a stage, without results; see the function ``blank_row``."""
        needed = {name: self.rows[name].row for name in stage.needs}
        rules = recipe.quality_rules if stage.name in self.outdated else None
        return blank_row(recipe, stage, self.window, needed, reduced=reduced, cut_off=cut_off, quality_rules=rules)

    def start(self, stage: Stage) -> FrameGrid:
        """The video of a stage's first request, before it is fitted to the context.

        A video that was reduced after a needed stage failed stays reduced: the larger one would fail again.
        """
        reduced = [self.reduced[name] for name in stage.needs if name in self.reduced]
        return min([self.whole, *reduced], key=lambda grid: grid.bytes)

    def set_previous(self, previous: WindowJob | None) -> None:
        """Set the previous window, if it is of the same clip. Captions are compared with its captions."""
        if previous and (previous.shard, previous.window.clip_key) == (self.shard, self.window.clip_key):
            self.previous = previous

    def set_answer(self, stage: Stage, text: str | None) -> None:
        """Set the first answer of a stage; later answers are ignored."""
        self._answers.setdefault(stage.name, text)
        if stage.name in self._answered:
            self._answered[stage.name].set()

    async def first_answer(self, stage: Stage) -> str | None:
        """Wait for the first answer of a stage; None if the first request failed.

        The next window is compared with this answer, not with the final one: waiting for retries and regenerations
        would caption a clip with similar windows one by one, and one slow window would delay all later ones.
        """
        if stage.name not in self._answers:
            await self._answered[stage.name].wait()
        return self._answers[stage.name]


def _is_better(row: CaptionRow, earlier: CaptionRow) -> bool:
    """Whether a row has a caption that replaces the earlier one."""
    if row.caption is None or earlier.caption is None:
        return row.caption is not None
    return replaces(row.caption, row.flags, earlier.caption, earlier.flags)


def blank_row(
    recipe: Recipe,
    stage: Stage,
    window: ManifestRow,
    needed: Mapping[str, CaptionRow] | None = None,
    *,
    reduced: bool = False,
    cut_off: bool = False,
    quality_rules: int | None = None,
) -> CaptionRow:
    """A failed row without results, for the caller to complete.

    Args:
        recipe: model, prompt and sampling.
        stage: the stage of the row.
        window: the row of the manifest.
        needed: rows with the captions in the prompt, by stage. Without them the row has no fingerprint.
        reduced: whether the context is too small for the whole window; see ``Recipe.fingerprint``.
        cut_off: whether an answer reached the output limit.
        quality_rules: version of the quality rules, if the row replaces an outdated one.
    """
    needed = needed or {}
    texts = {name: row.caption for name, row in needed.items() if row.caption is not None}
    is_known = window.status is Status.OK and all(name in needed for name in stage.needs)
    return CaptionRow(
        clip_key=window.clip_key,
        window_index=window.window_index,
        window_id=window.window_id,
        start_seconds=window.start_seconds,
        end_seconds=window.end_seconds,
        status=Status.FAILED,
        model=recipe.variant.hub_id,
        revision=recipe.variant.revision,
        lora=recipe.lora.hub_id if recipe.lora else None,
        lora_revision=recipe.lora.revision if recipe.lora else None,
        prompt_name=recipe.prompt_name(stage, window),
        prompt_hash=text_hash(recipe.template(stage, window)),
        sampling=asdict(recipe.params(stage)),
        fingerprint=recipe.fingerprint(
            stage, window, texts, reduced=reduced, cut_off=cut_off, quality_rules=quality_rules
        )
        if is_known
        else None,
        upstream_fingerprints=upstream_fingerprints(stage, needed),
    )


def upstream_fingerprints(stage: Stage, needed: Mapping[str, CaptionRow]) -> dict[str, str] | None:
    """The fingerprints of the rows that a stage needs, by stage; None if it needs none or one of them has none."""
    found = {name: needed[name].fingerprint for name in stage.needs if name in needed}
    known = {name: fingerprint for name, fingerprint in found.items() if fingerprint is not None}
    return known if known and len(known) == len(stage.needs) else None


def upstream_failed_row(recipe: Recipe, stage: Stage, job: WindowJob) -> CaptionRow:
    """The row of a stage that needs a text which failed."""
    failed = [name for name in stage.needs if name in job.rows and job.rows[name].row.caption is None]
    return replace(
        blank_row(recipe, stage, job.window),
        error_kind=UPSTREAM_FAILED,
        error=f"{' and '.join(failed or stage.needs)} failed for this window: see its row there",
    )
