from collections.abc import Sequence
from pathlib import Path

import pytest

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.gallery import build_gallery, write_gallery
from caption_assets.report.page import Page, SideCorrection
from caption_assets.store.corrections import Correction, Corrections, Decision, save_correction
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow
from tests.report.windows import SHARD, captioned, failed, publish, table_of, window
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

CAR, VAN = window("car.mp4"), window("van.mp4")
SHORT, RED = captioned(CAR, "A car."), captioned(CAR, "A red car.")


def decide(row: CaptionRow, decision: Decision, **details: str) -> Correction:
    return Correction.of(row, STAGE2.name, decision, "ann", **details)


def page_of(rows: Sequence[CaptionRow], *corrections: Correction) -> Page:
    """The gallery of these rows of stage 2, with the row ``SHORT`` of stage 1."""
    tables = {STAGE1.name: table_of(STAGE1, [SHORT]), STAGE2.name: table_of(STAGE2, rows)}
    return build_gallery(SHARD, [CAR, VAN][: len(rows)], tables, corrections=Corrections(corrections))


def correction_of(page: Page) -> SideCorrection:
    found = page.rows[0].sides[1].correction
    assert found
    return found


def facet(page: Page, row: int = 0) -> Sequence[str]:
    return page.rows[row].facets[page.facets.index("Correction")]


def test_rewrite_takes_the_place_of_the_models_text() -> None:
    page = page_of(
        [captioned(CAR, "A red car.", flags=("too_short",))], decide(RED, Decision.REWRITE, caption="A blue car.")
    )
    side = page.rows[0].sides[1]
    assert (side.text, side.flags) == (("A ", "blue", " car."), ())
    assert correction_of(page).model_text == ("A ", "red", " car.")
    assert facet(page) == ["rewritten"]


def test_rewrite_of_a_failed_row_is_its_text() -> None:
    row = failed(CAR)
    page = page_of([row], decide(row, Decision.REWRITE, caption="A blue car."))
    side = page.rows[0].sides[1]
    assert (side.text, side.missing, correction_of(page).model_text) == (("A blue car.",), None, None)


def test_rejection_has_its_reviewer_time_and_reason() -> None:
    made = decide(RED, Decision.REJECT, reason="wrong colour")
    found = correction_of(page_of([RED], made))
    assert (found.decision, found.reviewer, found.reason) == ("rejected", "ann", "wrong colour")
    assert found.decided_at == f"{made.decided_at:%Y-%m-%d %H:%M} UTC"
    assert not found.is_outdated
    assert found.reviewed_text is None


def test_outdated_correction_has_the_text_that_it_was_made_on() -> None:
    page = page_of([captioned(CAR, "A green car.")], decide(RED, Decision.ACCEPT))
    assert correction_of(page).is_outdated
    assert correction_of(page).reviewed_text == ("A ", "red", " car.")
    assert facet(page) == ["accepted", "outdated"]


def test_uncorrected_rows_can_be_found_once_there_are_corrections() -> None:
    rows = [RED, captioned(VAN, "A van.")]
    assert facet(page_of(rows), 1) == []
    assert facet(page_of(rows, decide(RED, Decision.ACCEPT)), 1) == ["none"]


def test_figures_count_the_corrections() -> None:
    gone = decide(captioned(window("gone.mp4"), "A bus."), Decision.REJECT)
    old = decide(captioned(VAN, "A bus."), Decision.REWRITE, caption="A coach.")
    figures = dict(page_of([RED, captioned(VAN, "A van.")], decide(RED, Decision.ACCEPT), gone, old).figures)
    assert figures["accepted captions"] == "1"
    assert figures["rejected captions"] == "1"
    assert figures["rewritten captions"] == "1"
    assert figures["outdated corrections"] == "1"
    assert figures["corrections without a row"] == "1"
    assert "accepted captions" not in dict(page_of([RED]).figures)


def test_written_gallery_has_the_stored_corrections(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish(root, [CAR], [SHORT], [RED])
    save_correction(root, SHARD, decide(RED, Decision.REJECT, reason="wrong colour"))
    page = root.read(write_gallery(StoredShard(root, SHARD), [STAGE1.name, STAGE2.name])).decode()
    assert "wrong colour" in page
