"""The window job: one window on its way through the stages, from its row of the manifest to a row of each stage."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from caption_assets.captioning.admission import NOTHING, Load
from caption_assets.captioning.budget import FrameGrid, NoRoom
from caption_assets.captioning.prefix_cache import NO_HITS, CacheHits
from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.quality import replaces
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import RequestFailed
from caption_assets.captioning.stages import STAGE1, STAGES, Stage
from caption_assets.store.tables import CaptionRow, ManifestRow, Status
from caption_assets.video.decode import Frames

DECODE = "decode"
"""Key of the seconds in which clips were fetched and decoded."""
STORE = "store"
"""Key of the seconds in which checkpoints and tables were written."""
_NO_VIDEO = FrameGrid(0, 0, 0)


class JobStatus(StrEnum):
    """Progress of a window job."""

    WAITING = "waiting"
    RUNNING = "running"
    """The engine has room for the window: it is decoded and captioned."""
    FINISHED = "finished"
    """Each wanted stage has its row."""


class Origin(StrEnum):
    """Source of a row."""

    REUSED = "reused"
    """An earlier run made it."""
    FRESH = "fresh"
    """This run made it, with a caption or an error."""
    UNCAPTIONABLE = "uncaptionable"
    """There is nothing to ask: the clip is unreadable, or a needed stage has no caption. Not kept in checkpoints."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """The row of one stage and its origin."""

    row: CaptionRow
    origin: Origin


@dataclass(slots=True, eq=False)
class WindowJob:
    """One window with all that is known of it. Mappings are by the name of the stage."""

    window: ManifestRow
    read: Callable[[], Iterable[bytes]]
    """Reads the clip in pieces."""
    stages: tuple[Stage, ...] = STAGES
    """The stages to caption, in the recipe's order."""
    shard: str = ""
    number: int = 0
    """Position in the shard's manifest."""
    rows: dict[str, StageRow] = field(default_factory=dict)
    """Rows of these stages and of stages that they need."""
    earlier_attempts: dict[str, int] = field(default_factory=dict)
    """Requests that earlier runs made for a row that is missing."""
    outdated: dict[str, CaptionRow] = field(default_factory=dict)
    """Rows of earlier runs that are missing because newer quality rules call for another caption. One whose new caption
    is not better stays."""
    previous: WindowJob | None = None
    """The window before this one in the same clip."""

    status: JobStatus = field(default=JobStatus.WAITING, init=False)
    problem: RequestFailed | None = field(default=None, init=False)
    """Why the window cannot be shown to the model."""
    wanted: FrameGrid = field(default=_NO_VIDEO, init=False)
    """The video that sampling and the pixel limits of one frame give."""
    whole: FrameGrid = field(default=_NO_VIDEO, init=False)
    """The same within the pixel limits of a window."""
    planned: FrameGrid = field(default=_NO_VIDEO, init=False)
    """The same within the context, for the first missing stage."""
    grid: FrameGrid = field(default=_NO_VIDEO, init=False)
    """The video of the next request."""
    load: Load = field(default=NOTHING, init=False)
    caption_room: int = field(default=0, init=False)
    """Maximum tokens of a caption that later stages can take into their prompts."""
    frames: Frames | None = field(default=None, init=False)
    """The decoded frames of ``grid``."""
    replica: int = field(default=0, init=False)
    """Number by which one of the engine's replicas is chosen."""
    is_cached: bool = field(default=False, init=False)
    """Whether the engine has received these frames."""
    crashes: int = field(default=0, init=False)
    """Crashes of the engine before it received these frames. After another one the prefix cache is empty."""
    attempts: Counter[str] = field(default_factory=Counter, init=False)
    """Requests of this run."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float), init=False)
    """Seconds of waiting for the engine, by stage, and of ``DECODE``."""
    hits: CacheHits = field(default=NO_HITS, init=False)
    """Prefix cache hits of stages after the first."""
    _answers: dict[str, str | None] = field(default_factory=dict, init=False, repr=False)
    _answered: defaultdict[str, asyncio.Event] = field(
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
        """The row of a stage that has one."""
        return self.rows[stage.name].row

    def earlier_caption(self, stage: Stage) -> str | None:
        """The caption that an earlier run made, whether or not it stays."""
        row = self.rows[stage.name].row if stage.name in self.rows else self.outdated.get(stage.name)
        return row.caption if row else None

    def captions(self, stage: Stage) -> dict[str, str] | None:
        """The captions that a stage needs; None if one of those rows has none."""
        texts = {name: self.rows[name].row.caption for name in stage.needs}
        found = {name: text for name, text in texts.items() if text is not None}
        return found if len(found) == len(texts) else None

    def add(self, stage: Stage, row: CaptionRow, *, reused: bool = False) -> None:
        """Set the row of a stage."""
        earlier = self.outdated.pop(stage.name, None)
        if earlier and not _is_better(row, earlier):
            row, reused = earlier, True
        made = Origin.REUSED if reused else Origin.FRESH
        self.rows[stage.name] = StageRow(row, made if row.fingerprint else Origin.UNCAPTIONABLE)
        self.answer(stage, row.caption)
        if not self.missing:
            self.status, self.frames = JobStatus.FINISHED, None

    def fail(self, recipe: Recipe, kind: str, message: str) -> None:
        """Set the missing rows: the first missing stage fails with this error, and so do stages that do not need it."""
        for stage in self.missing:
            if self.captions(stage) is None:
                self.add(stage, needed_failed(recipe, stage, self.window))
                continue
            row = self.blank_row(recipe, stage, reduced=kind == NoRoom.kind)
            tried = self.earlier_attempts.get(stage.name, 0) + 1 if row.fingerprint else 0
            self.add(stage, replace(row, error_kind=kind, error=message, attempts=tried))

    def blank_row(self, recipe: Recipe, stage: Stage, *, reduced: bool = False, cut_off: bool = False) -> CaptionRow:
        """A failed row of a stage, to be filled in; see ``blank_row``."""
        needed = {name: self.rows[name].row for name in stage.needs}
        return blank_row(recipe, stage, self.window, needed, reduced=reduced, cut_off=cut_off)

    def show(self, grid: FrameGrid) -> None:
        """Change the video of the next request."""
        if grid != self.grid:
            self.grid, self.frames = grid, None
        self.is_cached = False

    def follow(self, previous: WindowJob | None) -> None:
        """Compare this window's captions with those of ``previous``, if that is of the same clip."""
        if previous and (previous.shard, previous.window.clip_key) == (self.shard, self.window.clip_key):
            self.previous = previous

    def answer(self, stage: Stage, text: str | None) -> None:
        """Give the first answer to a stage; later ones change nothing."""
        self._answers.setdefault(stage.name, text)
        if stage.name in self._answered:
            self._answered[stage.name].set()

    async def first_answer(self, stage: Stage) -> str | None:
        """The first answer to a stage, awaited; None if the first request got no answer.

        The next window is compared with it. Waiting for retries and regenerations instead would caption a clip with
        similar windows one by one, and a window that hangs would delay all that follow.
        """
        if stage.name not in self._answers:
            await self._answered[stage.name].wait()
        return self._answers[stage.name]


def _is_better(row: CaptionRow, earlier: CaptionRow) -> bool:
    """Whether a row has a caption that replaces the one of an earlier run."""
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
) -> CaptionRow:
    """A failed row, to be filled in.

    Args:
        recipe: model, prompt and sampling.
        stage: the stage of the row.
        window: the row of the manifest.
        needed: the rows with the captions in the prompt, by stage. Without them the row has no fingerprint.
        reduced: whether the context has no room for the whole window; see ``Recipe.fingerprint``.
        cut_off: whether an answer reached the output limit.
    """
    needed = needed or {}
    captions = {name: row.caption for name, row in needed.items() if row.caption is not None}
    is_known = window.status is Status.OK and all(name in needed for name in stage.needs)
    source = needed.get(STAGE1.name)
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
        prompt_name=recipe.prompt_for(window).name,
        prompt_hash=text_hash(recipe.template(stage, window)),
        sampling=asdict(recipe.generation),
        fingerprint=recipe.fingerprint(stage, window, captions, reduced=reduced, cut_off=cut_off) if is_known else None,
        stage1_fingerprint=source.fingerprint if source else None,
    )


def needed_failed(recipe: Recipe, stage: Stage, window: ManifestRow) -> CaptionRow:
    """The row of a stage for a window of which a stage that it needs has no caption."""
    return replace(
        blank_row(recipe, stage, window),
        error_kind="stage1_failed",
        error="stage 1 has no caption for this window: see its row in stage1_captions",
    )
