"""The gallery of a shard: an HTML page in the root, with a preview and the captions of each window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from caption_assets.captioning.recipe_file import STAGE1, STAGE2
from caption_assets.checks.stored_tables import StoredShard, StoredTable, count_flagged, mean_words
from caption_assets.report.page import Page, Plot, Properties, Row, Side, publish_page
from caption_assets.report.plots import failures_plot, length_plot
from caption_assets.report.sides import OUTDATED, SharedProvenance, build_side, nonempty, position
from caption_assets.report.text_diff import diff_texts
from caption_assets.store.previews import GALLERY, preview_folder, read_posters
from caption_assets.store.tables import CaptionRow, ManifestRow, Status, extent

NOT_YET = "not captioned yet"
STAGES = {STAGE1.name: "stage 1", STAGE2.name: "stage 2"}

Tables = Mapping[str, StoredTable]
"""The stored caption tables of a shard, by name."""


def gallery_path(shard: str) -> str:
    """Path of a shard's gallery, relative to the root."""
    return f"{GALLERY}/{shard}/index.html"


def write_gallery(stored: StoredShard) -> str:
    """Write the gallery of a shard and return its path.

    Windows without captions are included; captions of windows that the manifest lacks are not. Posters are embedded.
    Animated previews are files beside the page: they play if it is opened from a folder or a web server, but not
    through a presigned address, which is valid for the page alone.

    Raises:
        TableError: if the manifest is missing, or a table is damaged.
        StoreError: if the root cannot be written.
    """
    root, shard = stored.root, stored.shard
    tables = {table: found for table in STAGES if (found := stored.find(table))}
    animated = {name.removesuffix(".webp") for name in root.names(preview_folder(shard)) if name.endswith(".webp")}
    page = build_gallery(shard, stored.manifest, tables, animated=animated, plots=draw_plots(tables))
    publish_page(root, gallery_path(shard), page, partial(read_posters, root, shard))
    return gallery_path(shard)


def build_gallery(
    shard: str,
    manifest: Sequence[ManifestRow],
    tables: Tables,
    *,
    animated: set[str] | frozenset[str] = frozenset(),
    plots: Sequence[Plot] = (),
) -> Page:
    """Build the page of a shard.

    Args:
        shard: the shard's key.
        manifest: its windows.
        tables: its caption tables.
        animated: ids of the windows that have an animated preview.
        plots: plots above the rows.
    """
    prompts = [tables[table].file_metadata.get("prompt") if table in tables else None for table in STAGES]
    provenance = SharedProvenance(prompts)
    stage1, stage2 = ({extent(row): row for row in tables[table].rows} if table in tables else {} for table in STAGES)
    rows = [
        _row(window, stage1.get(key := extent(window)), stage2.get(key), provenance, window.window_id in animated)
        for window in manifest
    ]
    return Page(
        title="Captions",
        subtitle=shard,
        sides=("Stage 1", "Stage 2"),
        marks_removed=False,
        figures=_figures(manifest, tables, rows),
        facets=("Status", "Error", "Flag", "Note"),
        provenance=list(provenance.found),
        rows=rows,
        plots=plots,
    )


def draw_plots(tables: Tables) -> list[Plot]:
    """Plots of the captions' lengths and of the failures of each stage; a plot without data is left out."""
    plots = []
    captioned = {STAGES[table]: stored.captions for table, stored in tables.items() if stored.captions}
    if words := {stage: [len(caption.words) for caption in captions] for stage, captions in captioned.items()}:
        means = ", ".join(f"{mean_words(captions):.1f} in {stage}" for stage, captions in captioned.items())
        plots.append(Plot(length_plot(words), f"Histogram of the number of words in a caption; mean {means}"))
    for table, stored in tables.items():
        if kinds := Counter(row.error_kind or "" for row in stored.rows if row.status is Status.FAILED):
            description = f"Number of rows without a caption in {STAGES[table]}, by kind of error"
            plots.append(Plot(failures_plot(kinds), description))
    return plots


def _row(
    window: ManifestRow,
    stage1: CaptionRow | None,
    stage2: CaptionRow | None,
    provenance: SharedProvenance,
    animated: bool,
) -> Row:
    difference = None
    if stage1 and stage2 and stage1.caption is not None and stage2.caption is not None:
        difference = diff_texts(stage1.caption, stage2.caption)
    outdated = stage1 and stage2 and stage2.upstream_fingerprints not in (None, {STAGE1.name: stage1.fingerprint})
    sides = (
        build_side(stage1, None, provenance.index(0, stage1, window.prompt)) if stage1 else _blank(window),
        build_side(
            stage2,
            difference.new if difference else None,
            provenance.index(1, stage2),
            notes=(OUTDATED,) if outdated else (),
        )
        if stage2
        else _blank(window),
    )
    made = [row for row in (stage1, stage2) if row]
    return Row(
        name=window.clip_key,
        position=position(window.window_index, window.start_seconds, window.end_seconds),
        window_id=window.window_id,
        facets=(
            [_status(window, made)],
            sorted({kind for kind in (window.error_kind, *(row.error_kind for row in made)) if kind}),
            sorted({flag for side in sides for flag in side.flags}),
            sorted({note for side in sides for note in side.notes}),
        ),
        sides=sides,
        changed=difference is not None and difference.similarity < 1,
        properties=_clip_properties(window),
        animated=animated,
    )


def _blank(window: ManifestRow) -> Side:
    return Side(missing=NOT_YET if window.status is Status.OK else f"{window.error_kind}: {window.error}")


def _status(window: ManifestRow, made: Sequence[CaptionRow]) -> str:
    """The status of a window's last stage."""
    if window.status is Status.FAILED:
        return "unreadable"
    if not made:
        return NOT_YET
    return "captioned" if made[-1].status is Status.OK else "failed"


def _figures(manifest: Sequence[ManifestRow], tables: Tables, rows: Sequence[Row]) -> Properties:
    statuses = Counter(row.facets[0][0] for row in rows)
    figures = {
        "clips": f"{len({window.clip_key for window in manifest}):,}",
        "rows": f"{len(rows):,}",
        **{status: f"{count:,}" for status, count in statuses.most_common()},
    }
    for table, stored in tables.items():
        figures[f"flagged in {STAGES[table]}"] = f"{count_flagged(stored.rows):,}"
        if stored.captions:
            figures[f"mean words in {STAGES[table]}"] = f"{mean_words(stored.captions):.1f}"
    return list(figures.items())


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
