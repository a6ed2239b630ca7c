import json
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.gallery import NOT_YET, build_gallery, write_gallery
from caption_assets.report.page import GROUP, Page, Row, render
from caption_assets.report.sides import OUTDATED
from caption_assets.store.previews import Preview, write_preview
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, TableError
from tests.report.windows import (
    FOUR,
    PROMPTS,
    SHARD,
    broken,
    captioned,
    failed,
    four_captions,
    publish,
    publish_four,
    table_of,
    window,
)
from tests.stages import STAGE1, STAGES

pytestmark = pytest.mark.fast

CAR = window("car.mp4")
DEFAULT = [stage.name for stage in STAGES]


class Blocks(HTMLParser):
    """The scripts and styles of a page, as an HTML parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.policy = ""
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attrs)
        if tag in ("script", "style"):
            self.found.append((known, ""))
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            known, text = self.found[-1]
            self.found[-1] = known, text + data

    def data(self, kind: str) -> list[Any]:
        return [json.loads(text) for known, text in self.found if known.get("data-kind") == kind]


def page_of(
    manifest: Sequence[ManifestRow],
    stage1: Sequence[CaptionRow] = (),
    stage2: Sequence[CaptionRow] = (),
    *,
    shard: str = SHARD,
) -> Page:
    """The gallery of tables that have these rows."""
    tables = {
        stage.name: table_of(stage, rows, PROMPTS[stage.name]) if rows else None
        for stage, rows in zip(STAGES, (stage1, stage2), strict=True)
    }
    return build_gallery(shard, manifest, tables)


def page_of_four(manifest: Sequence[ManifestRow], **changed: CaptionRow) -> Page:
    """The gallery of the recipe with all outputs, with the rows of some stages replaced for all windows."""
    rows = {
        stage.name: [{**four_captions(window), **changed}[stage.name] for window in manifest] for stage in FOUR.stages
    }
    return build_gallery(SHARD, manifest, {stage.name: table_of(stage, rows[stage.name]) for stage in FOUR.stages})


def row_of(manifest: ManifestRow, *captions: CaptionRow) -> Row:
    (row,) = page_of([manifest], captions[:1], captions[1:]).rows
    return row


def html_of(page: Page) -> str:
    return "".join(render(page, lambda ids: {}))


def test_words_added_by_stage2_are_segments_of_their_own() -> None:
    row = row_of(CAR, captioned(CAR, "A car."), captioned(CAR, "A red car."))
    assert [side.text for side in row.sides] == [("A car.",), ("A ", "red", " car.")]
    assert row.changed


def test_row_without_stage2_says_so() -> None:
    row = row_of(CAR, captioned(CAR, "A car."))
    assert row.sides[1].missing == NOT_YET
    assert row.facets[0] == ["captioned"]


def test_row_without_captions_shows_its_window() -> None:
    assert row_of(CAR).facets[0] == [NOT_YET]


def test_failed_row_shows_the_reason() -> None:
    row = row_of(CAR, captioned(CAR, "A car."), failed(CAR))
    assert row.sides[1].missing == "engine: the engine crashed"
    assert row.facets[:2] == (["failed"], ["engine"])


def test_unreadable_clip_shows_the_reason() -> None:
    clip = broken("torn.mp4")
    row = row_of(clip, failed(clip, "unreadable", "the index is missing"))
    assert row.facets[:2] == (["unreadable"], ["unreadable"])
    assert [side.missing for side in row.sides] == ["unreadable: the index is missing"] * 2
    assert row.position == "no window"


def test_flags_and_reductions_are_separate_facets() -> None:
    page = page_of([CAR], [captioned(CAR, "A car.", flags=("too_short",), reductions=("fewer_frames",))])
    assert dict(zip(page.facets, page.rows[0].facets, strict=True)) == {
        "Status": ["captioned"],
        "Error": [],
        "Flag": ["too_short"],
        "Note": ["fewer_frames"],
        "Correction": [],
    }


def test_figures_count_rows_with_quality_flags_only() -> None:
    van = window("van.mp4")
    rows = [captioned(CAR, "A car.", flags=("too_short",)), captioned(van, "A van.", reductions=("fewer_frames",))]
    assert dict(page_of([CAR, van], rows).figures)["flagged in stage 1"] == "1"


def test_stage2_of_another_stage1_is_noted_as_outdated() -> None:
    first = captioned(CAR, "A car.", fingerprint="new")
    second = captioned(CAR, "A car.", upstream_fingerprints={STAGE1.name: "old"})
    assert row_of(CAR, first, second).sides[1].notes == (OUTDATED,)
    present = replace(second, upstream_fingerprints={STAGE1.name: "new"})
    assert row_of(CAR, first, present).sides[1].notes == ()


@pytest.mark.parametrize("need", ["short", "dense_captions"])
def test_caption_of_any_outdated_need_is_noted(need: str) -> None:
    upstream = {"short": "s", "dense_captions": "d", need: "old"}
    changed = replace(four_captions(CAR)["alignment"], upstream_fingerprints=upstream)
    [row] = page_of_four([CAR], alignment=changed).rows
    assert [side.notes for side in row.sides] == [(), (), (), (OUTDATED,)]


def test_stages_are_columns_by_name_in_the_recipes_order() -> None:
    assert page_of([CAR]).sides == ["Stage 1", "Stage 2"]
    assert page_of_four([CAR]).sides == ["Short", "Dense", "Attributes", "Alignment"]


def test_text_is_compared_with_the_text_that_its_stage_needs() -> None:
    [row] = page_of_four([CAR]).rows
    assert row.sides[1].text == ("A ", "red", " car.")
    assert row.changed


def test_json_is_marked_as_such_and_not_compared() -> None:
    [row] = page_of_four([CAR]).rows
    assert [side.is_json for side in row.sides] == [False, False, True, False]
    assert row.sides[2].text == (four_captions(CAR)["attributes"].caption,)


def test_choices_have_probabilities_a_score_and_a_facet() -> None:
    page = page_of_four([CAR])
    side = page.rows[0].sides[3]
    assert (side.text, side.choices, side.score) == (("yes",), (("yes", 0.9), ("no", 0.1)), 0.9)
    assert dict(zip(page.facets, page.rows[0].facets, strict=True))["Alignment"] == ["yes"]


def test_failed_choice_has_no_score() -> None:
    [row] = page_of_four([CAR], alignment=failed(CAR)).rows
    assert (row.sides[3].choices, row.sides[3].score) == ((), None)
    assert row.facets[0] == ["failed"]
    assert row.facets[-1] == []


def test_figures_count_words_of_texts_only() -> None:
    words = {label for label, _ in page_of_four([CAR]).figures if "words" in label}
    assert words == {"mean words in short", "mean words in dense"}


def test_tables_of_other_recipes_are_left_out(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, [CAR])
    page = root.read(write_gallery(StoredShard(root, SHARD), ["attributes", "short"])).decode()
    [[row]] = Blocks(page).data("rows")
    assert [side["is_json"] for side in row["sides"]] == [True, False]
    assert '"sides":["Attributes","Short"]' in page


@pytest.mark.parametrize("other", [window("van.mp4"), window("car.mp4", end_seconds=8.0)])
def test_captions_of_other_windows_are_left_out(other: ManifestRow) -> None:
    assert row_of(CAR, captioned(other, "A van.")).sides[0].missing == NOT_YET


def test_shared_provenance_is_stored_once() -> None:
    windows = [window(f"{number}.mp4", prompt="Count the cars." if number == 2 else None) for number in range(3)]
    rows = [captioned(clip, "A car.", prompt_name="clip" if clip.prompt else "general") for clip in windows]
    page = page_of(windows, rows)
    assert [row.sides[0].provenance for row in page.rows] == [0, 0, 1]
    assert [dict(properties)["Prompt"] for properties in page.provenance] == [
        "general: Describe the video.",
        "clip: Count the cars.",
    ]


def test_stage_that_needs_a_text_keeps_its_prompt_beside_the_one_of_a_clip() -> None:
    clip = window("car.mp4", prompt="Count the cars.")
    # Earlier releases named the prompts of all stages after the clip's.
    rows = [captioned(clip, "A car.", prompt_name="clip")]
    page = page_of([clip], rows, rows)
    assert [dict(properties)["Prompt"] for properties in page.provenance] == [
        "clip: Count the cars.",
        "clip: Describe it more fully: {caption}",
    ]


def test_details_name_frames_and_tokens() -> None:
    properties = dict(row_of(CAR, captioned(CAR, "A car.")).sides[0].properties)
    assert properties["Frames"] == "3: 0, 50, 99"
    assert properties["Prompt tokens"] == "2,500 (2,048 cached)"


def test_details_shorten_a_long_list_of_frames() -> None:
    row = row_of(CAR, captioned(CAR, "A car.", frame_indices=tuple(range(768))))
    frames = dict(row.sides[0].properties)["Frames"]
    assert frames.startswith("768: 0, 1, 2, ")
    assert frames.endswith(" 37, \N{HORIZONTAL ELLIPSIS}, 767")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_page_preserves_any_text_and_adds_no_element_for_it(key: str, caption: str) -> None:
    clip = window(key)
    blocks = Blocks(html_of(page_of([clip], [captioned(clip, caption, flags=(key,))])))
    plain = Blocks(html_of(page_of([CAR], [captioned(CAR, "A car.", flags=("flag",))])))
    ((row,),) = blocks.data("rows")
    assert (row["name"], row["sides"][0]["text"]) == (key, [caption])
    assert blocks.tags == plain.tags


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "<style>x", "&lt;b&gt;", "a'b\">"]
)
def test_page_escapes_markup(text: str) -> None:
    html = html_of(page_of([window(text)], [captioned(window(text), text, flags=(text,))], shard=text))
    assert text not in html
    assert Blocks(html).data("rows")[0][0]["sides"][0]["text"] == [text]


def test_policy_allows_the_pages_own_scripts_and_styles_only() -> None:
    blocks = Blocks(html_of(page_of([window(f"{number}.mp4") for number in range(2 * GROUP)])))
    inline = {text for known, text in blocks.found if "type" not in known}
    named = set(re.findall(r"'sha256-([^']+)'", blocks.policy))
    assert named == {b64encode(sha256(text.encode()).digest()).decode() for text in inline}
    assert "unsafe" not in blocks.policy
    assert blocks.policy.startswith("default-src 'none'; ")


def test_first_rows_and_their_previews_come_first() -> None:
    clips = [window(f"{number}.mp4") for number in range(2 * GROUP + 1)]
    blocks = Blocks("".join(render(page_of(clips), lambda ids: {ids[0]: Preview(b"jpeg", 1)})))
    assert [known["data-kind"] for known, _ in blocks.found if "data-kind" in known] == [
        *("rows", "previews", "rows", "rows", "previews", "previews")
    ]
    assert [row["name"] for group in blocks.data("rows") for row in group] == [clip.clip_key for clip in clips]


def test_gallery_is_published_with_its_previews(tmp_path: Path) -> None:
    root, other = Root.open(str(tmp_path)), window("van.mp4")
    publish(root, [CAR, other], [captioned(CAR, "A car."), captioned(other, "A van.")])
    write_preview(root, SHARD, CAR.window_id, Preview(b"jpeg", 6))
    assert write_gallery(StoredShard(root, SHARD), DEFAULT) == f"gallery/{SHARD}/index.html"
    blocks = Blocks((tmp_path / "gallery" / SHARD / "index.html").read_text())
    (previews,) = blocks.data("previews")
    assert previews == {CAR.window_id: [6, b64encode(b"jpeg").decode()]}


def test_gallery_needs_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="materialize clip_manifest for shard 'shard' first"):
        write_gallery(StoredShard(Root.open(str(tmp_path)), SHARD), DEFAULT)


def test_empty_shard_has_a_page_without_rows() -> None:
    page = page_of([])
    assert page.rows == []
    assert Blocks(html_of(page)).data("rows") == []


def test_plots_of_lengths_and_failures_are_above_the_rows(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish(root, [CAR, window("van.mp4")], [captioned(CAR, "A car."), failed(window("van.mp4"))])
    page = root.read(write_gallery(StoredShard(root, SHARD), DEFAULT)).decode()
    assert 'alt="Histogram of the number of words in a caption; mean 2.0 in stage 1"' in page
    assert 'alt="Number of rows without a caption in stage 1, by kind of error"' in page
    assert page.index("<img ") < page.index('id="rows"')


@pytest.mark.parametrize(("kind", "is_plotted"), [("timeout", True), ("upstream_failed", False)])
def test_failure_is_plotted_in_its_own_stage_alone(tmp_path: Path, kind: str, is_plotted: bool) -> None:
    root = Root.open(str(tmp_path))
    publish(root, [CAR], [failed(CAR)], [failed(CAR, kind)])
    page = root.read(write_gallery(StoredShard(root, SHARD), DEFAULT)).decode()
    assert 'alt="Number of rows without a caption in stage 1, by kind of error"' in page
    assert ('alt="Number of rows without a caption in stage 2, by kind of error"' in page) == is_plotted


def test_gallery_without_captions_has_no_plots(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish(root, [broken("x.mp4")])
    assert "<img " not in root.read(write_gallery(StoredShard(root, SHARD), DEFAULT)).decode()
