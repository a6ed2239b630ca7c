"""The gallery of a shard: an HTML page in the root, with a preview and the captions of each window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from urllib.parse import quote

from caption_assets.captioning.window_job import UPSTREAM_FAILED
from caption_assets.checks.stored_tables import StoredShard, StoredTable, count_flagged, mean_words
from caption_assets.report.page import Page, Plot, Properties, Row, Side, publish_page
from caption_assets.report.plots import failures_plot, length_plot
from caption_assets.report.sides import (
    OUTDATED,
    SharedProvenance,
    build_side,
    nonempty,
    position,
    stage_heading,
    stage_label,
)
from caption_assets.report.text_diff import TextDiff, diff_texts
from caption_assets.store.corrections import CorrectionCounts, Corrections
from caption_assets.store.previews import GALLERY, StoredPreviews
from caption_assets.store.tables import CaptionRow, ManifestRow, Status, extent
from caption_assets.store.versions import FORMER_KINDS

NOT_YET = "not captioned yet"
UNCORRECTED = "none"
"""Value of a window without corrections in the facet of corrections."""
_UPSTREAM_KINDS = (UPSTREAM_FAILED, FORMER_KINDS[UPSTREAM_FAILED])

Tables = Mapping[str, StoredTable | None]
"""The caption tables of a shard by stage, in the recipe's order; None if a stage has none yet."""
Captions = Mapping[str, CaptionRow]
"""The captions of a window, by stage."""


def gallery_path(shard: str) -> str:
    """Path of a shard's gallery, relative to the root."""
    return f"{GALLERY}/{shard}/index.html"


def web_address(link_url: str, path: str) -> str:
    """The address of an object below a root that is served at ``link_url``."""
    return f"{link_url.rstrip('/')}/{quote(path)}"


def write_gallery(stored: StoredShard, stages: Sequence[str]) -> str:
    """Write the gallery of a shard and return its path.

    Windows without captions are included; captions of windows that the manifest lacks are not. Previews are embedded,
    because a presigned address is valid for the page alone.

    Args:
        stored: the shard's tables.
        stages: names of the recipe's stages, in order. Other caption tables in the root are left out.

    Raises:
        TableError: if the manifest is missing, or a table is damaged.
        StoreError: if the root cannot be written.
    """
    root, shard = stored.root, stored.shard
    tables = {stage: stored.find(stage) for stage in stages}
    plots = draw_plots(tables) if find_spec("matplotlib") else []  # a slim installation has none
    page = build_gallery(shard, stored.manifest, tables, corrections=stored.corrections, plots=plots)
    publish_page(root, gallery_path(shard), page, StoredPreviews(root, shard).read)
    return gallery_path(shard)


def build_gallery(
    shard: str,
    manifest: Sequence[ManifestRow],
    tables: Tables,
    *,
    corrections: Corrections | None = None,
    plots: Sequence[Plot] = (),
) -> Page:
    """Build the page of a shard.

    Args:
        shard: the shard's key.
        manifest: its windows.
        tables: its caption tables.
        corrections: people's corrections of its captions.
        plots: plots above the rows.
    """
    builder = _RowBuilder(tables, corrections or Corrections(()))
    rows = [builder.row(window) for window in manifest]
    return Page(
        title="Captions",
        subtitle=shard,
        sides=[stage_heading(stage) for stage in tables],
        marks_removed=False,
        figures=[*_figures(manifest, tables, rows), *_correction_figures(builder.corrections, tables)],
        facets=("Status", "Error", "Flag", "Note", "Correction", *map(stage_heading, builder.choices)),
        provenance=list(builder.provenance.found),
        rows=rows,
        plots=plots,
    )


def draw_plots(tables: Tables) -> list[Plot]:
    """Plots of the lengths of texts, and of the failures of each stage; a plot without data is left out.

    A row without a text that it needs is no failure of its own stage: the plot of the needed stage counts it.
    """
    plots = []
    stored = {stage_label(stage): table for stage, table in tables.items() if table}
    texts = {stage: table.captions for stage, table in stored.items() if table.is_text and table.captions}
    if words := {stage: [len(caption.words) for caption in captions] for stage, captions in texts.items()}:
        means = ", ".join(f"{mean_words(captions):.1f} in {stage}" for stage, captions in texts.items())
        plots.append(Plot(length_plot(words), f"Histogram of the number of words in a caption; mean {means}"))
    for stage, table in stored.items():
        failed = (row.error_kind or "" for row in table.rows if row.status is Status.FAILED)
        if kinds := Counter(kind for kind in failed if kind not in _UPSTREAM_KINDS):
            description = f"Number of rows without a caption in {stage}, by kind of error"
            plots.append(Plot(failures_plot(stage, kinds), description))
    return plots


class _RowBuilder:
    """Builds the rows of a page from the captions of each window.

    Args:
        tables: the caption tables of the page.
        corrections: the corrections of their captions.
    """

    def __init__(self, tables: Tables, corrections: Corrections) -> None:
        self._tables = tables
        self.corrections = corrections
        self._rows = {stage: {extent(row): row for row in table.rows} for stage, table in tables.items() if table}
        prompts = [table.file_metadata.get("prompt") if table else None for table in tables.values()]
        self.provenance = SharedProvenance(prompts)
        self.choices = [stage for stage, table in tables.items() if table and table.has_choices]
        """The stages that have choices. Each is a facet."""

    def row(self, window: ManifestRow) -> Row:
        """The row of a window."""
        key = extent(window)
        made = {stage: rows[key] for stage, rows in self._rows.items() if key in rows}
        differences = {stage: found for stage in made if (found := self._difference(stage, made))}
        sides = [
            self._side(column, stage, window, made, differences.get(stage)) for column, stage in enumerate(self._tables)
        ]
        return Row(
            name=window.clip_key,
            position=position(window.window_index, window.start_seconds, window.end_seconds),
            window_id=window.window_id,
            facets=(
                [window_status(window, made.values())],
                sorted({kind for kind in (window.error_kind, *(row.error_kind for row in made.values())) if kind}),
                sorted({flag for side in sides for flag in side.flags}),
                sorted({note for side in sides for note in side.notes}),
                self._decisions(sides),
                *(_captions(made, stage) for stage in self.choices),
            ),
            sides=sides,
            changed=any(difference.similarity < 1 for difference in differences.values()),
            properties=_clip_properties(window),
        )

    def _side(self, column: int, stage: str, window: ManifestRow, made: Captions, difference: TextDiff | None) -> Side:
        table, row = self._tables[stage], made.get(stage)
        if table is None or row is None:
            return _blank(window)
        # Earlier releases named the prompts of all stages after the clip's, which replaces none with texts.
        prompt = window.prompt if row.prompt_name == "clip" and not table.needs else None
        return build_side(
            table,
            row,
            difference.new if difference else None,
            self.provenance.index(column, row, prompt),
            notes=(OUTDATED,) if _is_outdated(row, made) else (),
            correction=self.corrections.find(row, stage),
        )

    def _decisions(self, sides: Sequence[Side]) -> list[str]:
        """The values of a row in the facet of corrections, which a shard without corrections does not have."""
        if not self.corrections.present:
            return []
        found = {one.decision for side in sides if (one := side.correction)}
        outdated = {OUTDATED for side in sides if side.correction and side.correction.is_outdated}
        return sorted(found | outdated) or [UNCORRECTED]

    def _difference(self, stage: str, made: Captions) -> TextDiff | None:
        """The difference of a text from the last text that its stage needs; None if it needs none."""
        table, new = self._tables[stage], made[stage].caption
        needs = [need for need in table.needs if need in made and self._is_text(need)] if table else []
        old = made[needs[-1]].caption if needs else None
        return diff_texts(old, new) if self._is_text(stage) and old is not None and new is not None else None

    def _is_text(self, stage: str) -> bool:
        table = self._tables[stage]
        return table is not None and table.is_text


def _captions(made: Captions, stage: str) -> list[str]:
    """A stage's caption, if there is one."""
    caption = made[stage].caption if stage in made else None
    return [] if caption is None else [caption]


def _is_outdated(row: CaptionRow, made: Captions) -> bool:
    """Whether a caption was made from another caption than the present one of a stage that it needs."""
    made_from = row.upstream_fingerprints or {}
    return any(stage in made and made[stage].fingerprint != found for stage, found in made_from.items())


def _blank(window: ManifestRow) -> Side:
    return Side(missing=NOT_YET if window.status is Status.OK else f"{window.error_kind}: {window.error}")


def window_status(window: ManifestRow, made: Collection[CaptionRow]) -> str:
    """The status of a window with the rows of its stages: failed if one of them failed."""
    if window.status is Status.FAILED:
        return "unreadable"
    if not made:
        return NOT_YET
    return "captioned" if all(row.status is Status.OK for row in made) else "failed"


def _figures(manifest: Sequence[ManifestRow], tables: Tables, rows: Sequence[Row]) -> Properties:
    statuses = Counter(row.facets[0][0] for row in rows)
    figures = [
        ("clips", f"{len({window.clip_key for window in manifest}):,}"),
        ("rows", f"{len(rows):,}"),
        *((status, f"{count:,}") for status, count in statuses.most_common()),
    ]
    for stage, table in tables.items():
        if table and not table.has_choices:
            figures.append((f"flagged in {stage_label(stage)}", f"{count_flagged(table.rows):,}"))
        if table and table.is_text and table.captions:
            figures.append((f"mean words in {stage_label(stage)}", f"{mean_words(table.captions):.1f}"))
    return figures


def _correction_figures(corrections: Corrections, tables: Tables) -> Properties:
    """The number of corrections by kind; empty if there are none."""
    rows = ((stage, row) for stage, table in tables.items() if table for row in table.rows)
    counts = CorrectionCounts.of(corrections, rows)
    figures = (
        ("accepted captions", counts.accepted),
        ("rejected captions", counts.rejected),
        ("rewritten captions", counts.rewritten),
        ("outdated corrections", counts.outdated),
        ("corrections without a row", counts.unmatched),
    )
    return [(label, f"{count:,}") for label, count in figures if count]


def _clip_properties(window: ManifestRow) -> Properties:
    return nonempty(
        (
            ("Codec", ", ".join(filter(None, (window.codec, window.pixel_format)))),
            ("Resolution", window.width and f"{window.width} \N{MULTIPLICATION SIGN} {window.height} pixels"),
            ("Duration", window.clip_seconds and f"{window.clip_seconds:.1f} s, {window.clip_frames} frames"),
            ("Window", window.end_frame and f"frames {window.start_frame} to {window.end_frame - 1}"),
            ("File size", f"{window.bytes:,} bytes"),
            ("Window id", window.window_id),
        )
    )
