from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from caption_assets.store.corrections import (
    Correction,
    CorrectionError,
    Decision,
    compact_corrections,
    corrections_folder,
    read_corrections,
    save_correction,
    save_corrections,
)
from caption_assets.store.root import Root
from tests.report.windows import broken, captioned, failed, window

pytestmark = pytest.mark.fast

SHARD = "a"
STAGE = "stage2_captions"
ROW = captioned(window("a.mp4"), "A red car.", fingerprint="f")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


def decide(decision: Decision, reviewer: str = "ann", **details: str) -> Correction:
    return Correction.of(ROW, STAGE, decision, reviewer, **details)


def test_stored_correction_is_read_as_it_was_made(root: Root) -> None:
    made = decide(Decision.REWRITE, caption="A red bus.\nIt stops.")
    save_correction(root, SHARD, made)
    found = read_corrections(root, SHARD)
    assert found.history == [made]
    assert found.find(ROW, STAGE) == made
    assert found.find(ROW, "stage1_captions") is None


def test_latest_correction_holds(root: Root) -> None:
    for one in (decide(Decision.ACCEPT), decide(Decision.REJECT, "bob", reason="wrong colour")):
        save_correction(root, SHARD, one)
    found = read_corrections(root, SHARD).find(ROW, STAGE)
    assert found is not None
    assert (found.decision, found.reviewer, found.reason) == (Decision.REJECT, "bob", "wrong colour")


def test_undone_correction_uncovers_the_one_before(root: Root) -> None:
    first, second = decide(Decision.ACCEPT), decide(Decision.REJECT)
    for one in (first, second, decide(Decision.UNDO, undoes=second.correction_id)):
        save_correction(root, SHARD, one)
    assert read_corrections(root, SHARD).find(ROW, STAGE) == first
    save_correction(root, SHARD, decide(Decision.UNDO, undoes=first.correction_id))
    found = read_corrections(root, SHARD)
    assert found.present == []
    assert len(found.history) == 4


def test_correction_is_outdated_when_the_text_has_changed() -> None:
    made = decide(Decision.ACCEPT)
    assert not made.is_outdated(ROW)
    assert made.is_outdated(captioned(window("a.mp4"), "A blue car."))


def test_caption_of_a_window_with_another_time_range_is_not_corrected(root: Root) -> None:
    save_correction(root, SHARD, decide(Decision.ACCEPT))
    other = captioned(window("a.mp4", end_seconds=2.0), "A red car.")
    assert read_corrections(root, SHARD).find(other, STAGE) is None


@pytest.mark.parametrize(
    ("decision", "details"),
    [
        (Decision.REWRITE, {}),
        (Decision.REWRITE, {"caption": " \n"}),
        (Decision.ACCEPT, {"caption": "A text."}),
        (Decision.UNDO, {}),
        (Decision.REJECT, {"undoes": "0"}),
    ],
)
def test_contradictory_decision_is_refused(decision: Decision, details: dict[str, str]) -> None:
    with pytest.raises(CorrectionError):
        decide(decision, **details)


def test_unreadable_clip_cannot_be_corrected() -> None:
    with pytest.raises(CorrectionError, match="no window"):
        Correction.of(failed(broken("b.mp4")), STAGE, Decision.ACCEPT, "ann")


def test_compaction_keeps_every_correction_in_one_file(root: Root) -> None:
    made = [decide(Decision.REJECT, reason=str(number)) for number in range(5)]
    for one in made:
        save_correction(root, SHARD, one)
    compact_corrections(root, SHARD)
    assert read_corrections(root, SHARD).history == made
    assert len(root.names(corrections_folder(SHARD))) == 1
    compact_corrections(root, SHARD)
    assert read_corrections(root, SHARD).history == made


def test_compactions_beside_reviewers_lose_nothing(root: Root) -> None:
    made = [decide(Decision.ACCEPT, reviewer) for reviewer in ("ann", "bob") for _ in range(40)]

    def compact(_: int) -> None:
        compact_corrections(root, SHARD)

    with ThreadPoolExecutor(8) as pool:
        saved = [pool.submit(save_correction, root, SHARD, one) for one in made]
        compacted = [pool.submit(compact, number) for number in range(20)]
        for job in (*saved, *compacted):
            job.result()
    assert {one.correction_id for one in read_corrections(root, SHARD).history} == {one.correction_id for one in made}


def test_import_that_is_repeated_has_no_effect(root: Root) -> None:
    made = [decide(Decision.ACCEPT), decide(Decision.REJECT)]
    save_corrections(root, SHARD, made)
    save_corrections(root, SHARD, made)
    assert read_corrections(root, SHARD).history == made
