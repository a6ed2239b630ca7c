"""The gallery of a shard: its windows with their pictures and captions, as one page in the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.report.page import Facts, Page, Plot, Row, Side, publish_page
from caption_assets.report.plots import failures_plot, length_plot
from caption_assets.report.sides import OUTDATED, SharedProvenance, known, mean_words, place, side
from caption_assets.report.text_diff import compare
from caption_assets.store.previews import GALLERY, preview_folder, read_posters
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CaptionRow,
    ManifestRow,
    Status,
    extent,
    find_captions,
    read_facts,
    read_manifest,
)

NOT_YET = "not captioned yet"


def gallery_path(shard: str) -> str:
    """Where a shard's gallery lies, relative to the root."""
    return f"{GALLERY}/{shard}/index.html"


def write_gallery(root: Root, shard: str) -> str:
    """Make a shard's gallery from what is published of it, and return its path.

    There must be a manifest. Captions that have not been made yet are told as such; rows of other windows than the
    manifest's are left out. Posters are embedded; animated previews are played from beside the page, where that is to
    be had: from a folder and a web server, but not through an address that is signed for the page alone.

    Raises:
        TableError: if there is no manifest, or a table is damaged.
        StoreError: if the root cannot be written.
    """
    manifest = read_manifest(root, shard)
    tables = (STAGE1.name, STAGE2.name)
    captions = [find_captions(root, table, shard) for table in tables]
    prompts = [
        read_facts(root, table, shard).get("prompt") if rows else None
        for table, rows in zip(tables, captions, strict=True)
    ]
    animated = {name.removesuffix(".webp") for name in root.names(preview_folder(shard)) if name.endswith(".webp")}
    plots = draw_plots(dict(zip(("stage 1", "stage 2"), captions, strict=True)))
    page = build_gallery(shard, manifest, *captions, prompts=prompts, animated=animated, plots=plots)
    publish_page(root, gallery_path(shard), page, partial(read_posters, root, shard))
    return gallery_path(shard)


def build_gallery(
    shard: str,
    manifest: Sequence[ManifestRow],
    stage1: Sequence[CaptionRow],
    stage2: Sequence[CaptionRow],
    *,
    prompts: Sequence[str | None] = (None, None),
    animated: set[str] | frozenset[str] = frozenset(),
    plots: Sequence[Plot] = (),
) -> Page:
    """The page of a shard.

    Args:
        shard: its key.
        manifest: its windows.
        stage1: their captions; none if they have not been made.
        stage2: likewise.
        prompts: the instruction of each stage.
        animated: ids of the windows that have an animated preview.
        plots: pictures of the whole.
    """
    makings = SharedProvenance(prompts)
    first, second = ({extent(row): row for row in rows} for rows in (stage1, stage2))
    rows = [
        _row(window, first.get(key := extent(window)), second.get(key), makings, window.window_id in animated)
        for window in manifest
    ]
    return Page(
        title="Captions",
        subtitle=shard,
        sides=("Stage 1", "Stage 2"),
        removed=False,
        figures=_figures(manifest, stage1, stage2, rows),
        facets=("Status", "Error", "Flag"),
        makings=list(makings.found),
        rows=rows,
        plots=plots,
    )


def draw_plots(stages: Mapping[str, Sequence[CaptionRow]]) -> list[Plot]:
    """How long the captions of each stage are, and what their failures are; no picture of nothing."""
    plots = []
    words = {
        name: [len(row.caption.split()) for row in rows if row.caption is not None] for name, rows in stages.items()
    }
    if spoken := {name: counts for name, counts in words.items() if counts}:
        means = ", ".join(f"{sum(counts) / len(counts):.1f} in {name}" for name, counts in spoken.items())
        plots.append(Plot(length_plot(spoken), f"Histogram of the number of words in a caption; mean {means}"))
    for name, rows in stages.items():
        if kinds := Counter(row.error_kind or "" for row in rows if row.status is Status.FAILED):
            plots.append(Plot(failures_plot(kinds), f"Number of rows without a caption in {name}, by kind of error"))
    return plots


def _row(
    window: ManifestRow, stage1: CaptionRow | None, stage2: CaptionRow | None, makings: SharedProvenance, animated: bool
) -> Row:
    difference = None
    if stage1 and stage2 and stage1.caption is not None and stage2.caption is not None:
        difference = compare(stage1.caption, stage2.caption)
    outdated = stage1 and stage2 and stage2.stage1_fingerprint not in (None, stage1.fingerprint)
    sides = (
        side(stage1, None, makings.number(0, stage1, window.prompt)) if stage1 else _blank(window),
        side(stage2, difference.new if difference else None, makings.number(1, stage2), (OUTDATED,) if outdated else ())
        if stage2
        else _blank(window),
    )
    made = [row for row in (stage1, stage2) if row]
    return Row(
        name=window.clip_key,
        place=place(window.window_index, window.start_seconds, window.end_seconds),
        window_id=window.window_id,
        facets=(
            [_status(window, made)],
            sorted({kind for kind in (window.error_kind, *(row.error_kind for row in made)) if kind}),
            sorted({flag for one in sides for flag in one.flags}),
        ),
        sides=sides,
        changed=difference is not None and difference.similarity < 1,
        facts=_clip_facts(window),
        moves=animated,
    )


def _blank(window: ManifestRow) -> Side:
    return Side(missing=NOT_YET if window.status is Status.OK else f"{window.error_kind}: {window.error}")


def _status(window: ManifestRow, made: Sequence[CaptionRow]) -> str:
    """A row is what its last stage is."""
    if window.status is Status.FAILED:
        return "unreadable"
    if not made:
        return NOT_YET
    return "captioned" if made[-1].status is Status.OK else "failed"


def _figures(
    manifest: Sequence[ManifestRow], stage1: Sequence[CaptionRow], stage2: Sequence[CaptionRow], rows: Sequence[Row]
) -> Facts:
    statuses = Counter(row.facets[0][0] for row in rows)
    figures = {
        "clips": f"{len({window.clip_key for window in manifest}):,}",
        "rows": f"{len(rows):,}",
        **{status: f"{count:,}" for status, count in statuses.most_common()},
        "flagged": f"{sum(bool(row.facets[2]) for row in rows):,}",
    }
    for stage, captions in ((1, stage1), (2, stage2)):
        if captions:
            figures[f"words in stage {stage}"] = f"{mean_words(captions):.1f}"
    return list(figures.items())


def _clip_facts(window: ManifestRow) -> Facts:
    return known(
        (
            ("Codec", ", ".join(filter(None, (window.codec, window.pixel_format)))),
            ("Size", window.width and f"{window.width} \N{MULTIPLICATION SIGN} {window.height} pixels"),
            ("Clip", window.clip_seconds and f"{window.clip_seconds:.1f} s, {window.clip_frames} frames"),
            ("Window", window.end_frame and f"frames {window.start_frame} to {window.end_frame - 1}"),
            ("Bytes", f"{window.bytes:,}"),
            ("Window id", window.window_id),
        )
    )
