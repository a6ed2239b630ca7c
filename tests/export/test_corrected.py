import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caption_assets.export.config import ExportConfig
from caption_assets.export.index import shard_folder
from caption_assets.store.corrections import (
    Correction,
    Decision,
    corrections_folder,
    pending_corrections,
    read_corrections,
    save_correction,
)
from caption_assets.store.failure_limits import FailureLimit, FailureLimits
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, read_captions
from tests.export.shards import LINES, TARS, clip, export, lines, samples
from tests.report.windows import FOUR, SHARD, captioned, failed, four_captions, publish, publish_four
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

STAGE = STAGE2.name
ANYTHING = FailureLimit(1.0, 0, ("", ""))
NO_LIMITS = FailureLimits(ANYTHING, ANYTHING)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


@pytest.fixture
def rows(root: Root) -> list[ManifestRow]:
    """The windows of a captioned shard."""
    found = clip(root, "car.mp4", b"a car", windows=3)
    recaption(root, found, "A red car.")
    return found


def recaption(root: Root, rows: Sequence[ManifestRow], text: str) -> None:
    publish(root, rows, [captioned(row, "A car.") for row in rows], [captioned(row, text) for row in rows])


def decide(root: Root, number: int, decision: Decision, *, stage: str = STAGE, **details: str) -> Correction:
    """Save a correction of a window as it is stored."""
    made = Correction.of(read_captions(root, stage, SHARD)[number], stage, decision, "ann", **details)
    save_correction(root, SHARD, made)
    return made


def exported(root: Root, how: ExportConfig = LINES) -> list[tuple[int, str, str | None]]:
    """Number, text and correction of each exported window."""
    export(root, how)
    return [(line["window_index"], line["stage2_caption"], line["stage2_correction"]) for line in lines(root)]


def test_rewrite_replaces_the_caption(root: Root, rows: list[ManifestRow]) -> None:
    decide(root, 1, Decision.REWRITE, caption="A blue bus.")
    assert exported(root)[1] == (1, "A blue bus.", "rewrite")
    export(root, TARS)
    [(record, _)] = samples(root)
    assert [window["stage2_caption"] for window in record["windows"]] == ["A red car.", "A blue bus.", "A red car."]


def test_rejected_window_is_left_out_and_counted(root: Root, rows: list[ManifestRow]) -> None:
    decide(root, 1, Decision.REJECT, reason="wrong colour")
    assert [number for number, _, _ in exported(root)] == [0, 2]
    assert export(root, LINES).index.left_out == {"rejected": 1}


def test_rejection_of_a_stage_that_is_not_trained_on_leaves_no_window_out(root: Root, rows: list[ManifestRow]) -> None:
    decide(root, 1, Decision.REJECT, stage=STAGE1.name)
    assert len(exported(root)) == 3
    assert export(root, replace(LINES, texts={STAGE1.name: 1.0, STAGE: 1.0})).index.left_out == {"rejected": 1}


def test_withdrawn_rejection_leaves_no_window_out(root: Root, rows: list[ManifestRow]) -> None:
    made = decide(root, 1, Decision.REJECT)
    assert len(exported(root)) == 2
    decide(root, 1, Decision.UNDO, undoes=made.correction_id)
    assert len(exported(root)) == 3


def test_corrections_outlive_recaptioning(root: Root, rows: list[ManifestRow]) -> None:
    decide(root, 0, Decision.ACCEPT)
    decide(root, 1, Decision.REWRITE, caption="A blue bus.")
    decide(root, 2, Decision.REJECT)
    assert exported(root) == [(0, "A red car.", "accept"), (1, "A blue bus.", "rewrite")]
    assert export(root, LINES).index.corrections["outdated"] == 0
    recaption(root, rows, "A green car.")
    assert exported(root) == [(0, "A green car.", None), (1, "A blue bus.", "rewrite")]
    counts = {"accepted": 1, "rejected": 1, "rewritten": 1, "outdated": 3, "unmatched": 0}
    assert export(root, LINES).index.corrections == counts
    recaption(root, rows, "A red car.")
    assert exported(root)[0] == (0, "A red car.", "accept")


def test_rewrite_gives_a_failed_row_its_caption(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car", windows=2)
    publish(root, rows, [captioned(row, "A car.") for row in rows], [failed(row) for row in rows])
    decide(root, 0, Decision.REWRITE, caption="A blue bus.")
    assert exported(root, replace(LINES, limits=NO_LIMITS)) == [(0, "A blue bus.", "rewrite")]


def test_window_with_a_rewritten_text_needs_no_caption_of_the_model(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car", windows=2)
    publish(root, rows, [failed(row) for row in rows], [failed(row, "upstream_failed") for row in rows])
    decide(root, 0, Decision.REWRITE, caption="A blue bus.")
    decide(root, 1, Decision.REWRITE, stage=STAGE1.name, caption="A bus.")
    assert exported(root, replace(LINES, limits=NO_LIMITS)) == [(0, "A blue bus.", "rewrite")]


def test_rewrite_of_a_stage_keeps_the_captions_of_the_stages_that_need_it(root: Root, rows: list[ManifestRow]) -> None:
    decide(root, 0, Decision.REWRITE, stage=STAGE1.name, caption="A bus.")
    assert exported(root)[0] == (0, "A red car.", None)
    assert (lines(root)[0]["stage1_caption"], lines(root)[0]["stage1_correction"]) == ("A bus.", "rewrite")


def test_correction_of_a_window_that_has_changed_is_unmatched(root: Root, rows: list[ManifestRow]) -> None:
    decide(root, 1, Decision.REJECT)
    other = [replace(row, end_seconds=row.end_seconds and row.end_seconds - 1) for row in rows]
    recaption(root, other, "A red car.")
    assert len(exported(root)) == 3
    assert export(root, LINES).index.corrections["unmatched"] == 1


def test_new_correction_writes_the_dataset_anew(root: Root, rows: list[ManifestRow]) -> None:
    export(root, LINES)
    assert not export(root, LINES).written
    decide(root, 1, Decision.REWRITE, caption="A blue bus.")
    assert export(root, LINES).written
    assert not export(root, LINES).written
    decide(root, 1, Decision.REWRITE, caption="A blue coach.")
    assert export(root, LINES).written


def test_counts_of_the_index_follow_corrections_that_change_no_text(root: Root, rows: list[ManifestRow]) -> None:
    export(root, LINES)
    decide(root, 1, Decision.REJECT, stage=STAGE1.name)
    again = export(root, LINES)
    assert json.loads(root.read(f"{shard_folder(SHARD)}/index.json"))["corrections"] == again.index.corrections
    assert again.index.corrections["rejected"] == 1


def test_export_compacts_the_corrections(root: Root, rows: list[ManifestRow]) -> None:
    made = [decide(root, number, Decision.ACCEPT) for number in range(3)]
    assert pending_corrections(root).keys() == {SHARD}
    export(root, LINES)
    assert not pending_corrections(root)
    assert len(root.names(corrections_folder(SHARD))) == 1
    assert read_corrections(root, SHARD).history == made


@pytest.mark.parametrize(
    ("stage", "text", "column", "found"),
    [
        ("alignment", "no", "alignment_choice", "no"),
        ("attributes", '{"subjects": ["a bus"]}', "attributes_fields", {"subjects": ["a bus"], "camera": None}),
        ("alignment", "perhaps", None, None),
        ("attributes", "a bus", None, None),
    ],
)
def test_rewrite_of_choices_and_json_needs_their_form(
    root: Root, stage: str, text: str, column: str | None, found: Any
) -> None:
    [row] = clip(root, "car.mp4", b"a car")
    publish_four(root, [row])
    given: CaptionRow = four_captions(row)[stage]
    save_correction(root, SHARD, Correction.of(given, stage, Decision.REWRITE, "ann", caption=text))
    index = export(root, replace(LINES, graph=FOUR)).index
    if column:
        assert lines(root)[0][column] == found
    else:
        assert (lines(root), index.left_out) == ([], {f"invalid rewrite: {stage}": 1})
