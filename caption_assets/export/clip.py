"""The windows of a shard with the captions of all stages, streamed from the tables, and the clips made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from caption_assets.captioning.stages import Stage
from caption_assets.store.caption_columns import UPSTREAM
from caption_assets.store.corrections import Correction, CorrectionFiles, Corrections, Decision, read_correction_files
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableFile
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionRow,
    ManifestRow,
    Status,
    TableError,
    caption_rows,
    extent,
    manifest_rows,
    open_table,
)


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A text to train on."""

    stage: str
    """The stage whose caption it is."""
    text: str
    weight: float = 1.0
    """Its share among the texts of its window."""
    tokens: int | None = None
    """Its length in tokens of the trainer's tokenizer; None without one."""
    full_tokens: int | None = None
    """The length of the caption that it was cut from, or that it replaces; otherwise its own."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video file of the dataset."""

    path: str
    """Relative to the dataset's folder."""
    frames: int
    fps: float
    seconds: float
    width: int
    """As displayed, in pixels."""
    height: int
    """As displayed, in pixels."""


@dataclass(frozen=True, slots=True)
class CaptionedWindow:
    """A window with its row in each table, and what a trainer loads of it."""

    row: ManifestRow
    captions: Mapping[str, CaptionRow]
    """Its caption of each stage, in the order of the stages: the model's, or after ``ApplyCorrections`` a person's."""
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """The corrections that hold, by stage."""
    texts: tuple[TrainingText, ...] = ()
    """The texts to train on; ``select_clips`` fills them in."""
    number: int = 0
    """Number of its row in the tables, from 0."""
    video: VideoFile | None = None
    """Its file in the dataset, or its clip's; None in a format whose files contain the clips or refer to the source."""

    def present_decision(self, stage: str) -> Decision | None:
        """What a person decided on a stage's caption. An acceptance of an earlier text does not count."""
        found = self.corrections.get(stage)
        if found is None or (found.decision is Decision.ACCEPT and found.is_outdated(self.captions[stage])):
            return None
        return found.decision


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """A clip of a shard."""

    shard: str
    row: ManifestRow
    """The manifest row of its first window, for the clip's location and properties."""
    windows: tuple[CaptionedWindow, ...]
    """The windows to export."""
    left_out: tuple[str, ...]
    """The reason why each other window is left out."""


@dataclass(frozen=True, slots=True)
class ShardTables:
    """A snapshot of the tables of a shard."""

    root: Root
    """The root that they are from."""
    shard: str
    manifest: TableFile
    stages: tuple[Stage, ...]
    captions: tuple[TableFile, ...]
    """The table of each stage."""
    corrections: Corrections
    correction_files: CorrectionFiles
    """The files of these corrections."""
    limit: Callable[[CaptionedWindow], CaptionedWindow | str] | None = None
    """The last step of ``select_clips``, which limits equal texts over the dataset; None for no limit."""

    def windows(self) -> Iterator[CaptionedWindow]:
        """The shard's windows, and its unreadable clips, in the manifest's order.

        Raises:
            TableError: if a table was made from an earlier version of another one.
        """
        names = [stage.name for stage in self.stages]
        rows: Iterator[tuple[Any, ...]] = zip_longest(manifest_rows(self.manifest), *map(caption_rows, self.captions))
        for number, (row, *captions) in enumerate(rows):
            for name, caption in zip(names, captions, strict=True):
                if row is None or caption is None or extent(row) != extent(caption):
                    raise self._outdated(name, CLIP_MANIFEST)
            found = dict(zip(names, captions, strict=True))
            for stage in self.stages:
                self._check_upstream(stage, found)
            corrections = {name: self.corrections.find(caption, name) for name, caption in found.items()}
            present = {name: one for name, one in corrections.items() if one}
            yield CaptionedWindow(row, found, present, number=number)

    def _check_upstream(self, stage: Stage, captions: Mapping[str, CaptionRow]) -> None:
        """Check that a stage's caption was made from the present captions of the stages that it needs."""
        row = captions[stage.name]
        made_from = row.upstream_fingerprints or {}
        for need in stage.needs:
            if row.status is Status.OK and made_from.get(need) != captions[need].fingerprint:
                raise self._outdated(stage.name, need)

    def _outdated(self, table: str, source: str) -> TableError:
        return TableError(
            f"{table} of shard {self.shard!r} is older than its {source}: materialize {table} for it again"
        )


@contextmanager
def open_tables(root: Root, shard: str, stages: tuple[Stage, ...]) -> Iterator[ShardTables]:
    """A shard's tables, copied to the local disk until the block ends.

    Raises:
        TableError: if one has not been materialized, is damaged, or lacks columns of its stage's output.
    """
    with ExitStack() as files:
        manifest, *captions = (
            files.enter_context(open_table(root, table, shard))
            for table in (CLIP_MANIFEST, *(stage.name for stage in stages))
        )
        for stage, file in zip(stages, captions, strict=True):
            if missing := set(stage.columns.schema.names) - {UPSTREAM} - set(file.columns.names):
                raise TableError(
                    f"{file.name} lacks the columns {', '.join(sorted(missing))}, because stage {stage.name} had "
                    f"another output: materialize {stage.name} for shard {shard!r} again"
                )
        found = read_correction_files(root, shard)
        yield ShardTables(root, shard, manifest, stages, tuple(captions), found.corrections, found)
