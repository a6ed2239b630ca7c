from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.shard_summary import (
    GROUPS,
    TEXT,
    WORD_BINS,
    WORST,
    Spending,
    StageSummary,
    decode_summary,
    encode_summary,
    find_summary,
    summary_path,
    write_summary,
)
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, TableError
from tests.report.windows import (
    FOUR,
    SHARD,
    broken,
    captioned,
    failed,
    publish,
    publish_four,
    publish_stage,
    window,
)
from tests.stages import STAGE1, STAGES

pytestmark = pytest.mark.fast

NAMES = [stage.name for stage in STAGES]
CAR, VAN, BUS = window("car.mp4"), window("van.mp4"), window("bus.mp4")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


def stage1_of(root: Root, texts: list[str], **changes: object) -> StageSummary:
    rows = [window(f"{number:05}.mp4") for number in range(len(texts))]
    publish(root, rows, [captioned(row, text, **changes) for row, text in zip(rows, texts, strict=True)])
    return write_summary(StoredShard(root, SHARD), NAMES).stages[STAGE1.name]


def test_rows_are_counted_by_status_and_failures_by_kind(root: Root) -> None:
    rows = [CAR, VAN, BUS, broken("broken.mp4")]
    stage1 = [captioned(CAR, "A car."), failed(VAN), captioned(BUS, "A bus."), failed(rows[3], "damaged", "cut off")]
    stage2 = [captioned(CAR, "A red car."), failed(VAN, "upstream_failed"), failed(BUS, "text"), failed(rows[3])]
    publish(root, rows, stage1, stage2)
    summary = write_summary(StoredShard(root, SHARD), NAMES)
    assert (summary.clips, summary.windows) == (4, 4)
    assert summary.statuses == {"failed": 2, "captioned": 1, "unreadable": 1}
    assert summary.unreadable == {"unreadable": 1}
    assert [one.captions for one in summary.stages.values()] == [2, 1]
    assert summary.stages[NAMES[0]].failed == {"engine": 1, "damaged": 1}
    assert summary.stages[NAMES[1]].failed == {"text": 1, "engine": 1}


def test_summary_is_stored_and_read_back(root: Root) -> None:
    publish_four(root, [CAR, VAN])
    written = write_summary(StoredShard(root, SHARD), [stage.name for stage in FOUR.stages])
    assert find_summary(root, SHARD) == written
    assert list(written.stages) == [stage.name for stage in FOUR.stages]


def test_stage_without_a_table_is_left_out(root: Root) -> None:
    publish(root, [CAR], [captioned(CAR, "A car.")])
    assert list(write_summary(StoredShard(root, SHARD), NAMES).stages) == NAMES[:1]


def test_words_of_texts_are_a_histogram(root: Root) -> None:
    found = stage1_of(root, ["one two", "word " * 9, "word " * 11, "word " * 5000])
    assert (found.worded, found.words) == (4, 5022)
    assert found.word_bins[:3] == [1, 1, 1]
    assert (len(found.word_bins), found.word_bins[-1]) == (WORD_BINS, 1)


def test_scores_and_choices_are_counted(root: Root) -> None:
    rows = [CAR, VAN, BUS]
    publish_four(root, rows)
    answers = [
        captioned(row, "yes" if score > 0.5 else "no", probabilities={"yes": score, "no": 1 - score})
        for row, score in zip(rows, (1.0, 0.26, 0.93), strict=True)
    ]
    publish_stage(root, FOUR.stages[3], answers)
    found = write_summary(StoredShard(root, SHARD), [stage.name for stage in FOUR.stages]).stages["alignment"]
    assert found.scored == 3
    assert found.score_sum == pytest.approx(2.19)
    assert {number: count for number, count in enumerate(found.score_bins) if count} == {5: 1, 18: 1, 19: 1}
    assert found.choices == {"yes": 2, "no": 1}
    assert found.worded == 0
    [worst] = found.worst
    assert (worst.reason, worst.detail, worst.clip) == ("low score", "0.260", "van.mp4")


def test_flags_and_cut_off_captions_are_counted(root: Root) -> None:
    found = stage1_of(root, ["A car.", "A van."], flags=("repetition", "cut_off"), finish_reason="length")
    assert (found.flagged, found.truncated) == (2, 2)
    assert found.flags == {"repetition": 2, "cut_off": 2}


def test_worst_windows_are_bounded_and_explained(root: Root) -> None:
    rows = [window(f"{number:02}.mp4") for number in range(40)]
    kinds = ["engine"] * 10 + ["timeout"] * 2
    answers = [
        failed(row, kinds[number], "why")
        if number < 12
        else captioned(row, "x" * 1000, flags=("f",) * (1 + number % 3))
        for number, row in enumerate(rows)
    ]
    publish(root, rows, answers)
    worst = write_summary(StoredShard(root, SHARD), NAMES).stages[STAGE1.name].worst
    assert [one.reason for one in worst] == ["failed"] * WORST + ["flagged"] * WORST
    assert {one.detail for one in worst[:WORST]} == {"engine", "timeout"}
    assert {one.detail for one in worst[WORST:]} == {"f, f, f"}
    assert (worst[0].text, worst[0].position) == ("why", "window 0, 0:00.0 to 0:04.0")
    assert len(worst[-1].text) == TEXT


def test_near_duplicates_of_several_clips_are_grouped(root: Root) -> None:
    long = "A man in a dark coat walks slowly along the wet street and looks at the shop windows to his left"
    found = stage1_of(root, [f"{long}.", "A dog.", f"{long}, then stops.", long.upper(), "A cat.", "A dog!"])
    assert [(group.count, group.clip, group.text) for group in found.groups] == [
        (3, "00000.mp4", f"{long}."),
        (2, "00001.mp4", "A dog."),
    ]
    assert found.copies == 3
    assert found.texts.count == 4


def test_windows_of_one_clip_are_no_duplicates(root: Root) -> None:
    rows = [window("car.mp4", index) for index in range(3)]
    publish(root, rows, [captioned(row, "A car.") for row in rows])
    found = write_summary(StoredShard(root, SHARD), NAMES).stages[STAGE1.name]
    assert (found.copies, found.groups) == (0, [])


def test_summary_has_a_bounded_size(root: Root) -> None:
    texts = [f"{'word ' * (number % 90)} {number // 2} {'y' * 500}" for number in range(600)]
    stage1_of(root, texts, flags=("repetition",))
    assert root.fs.size(root.full(summary_path(SHARD))) < 20_000
    assert len(write_summary(StoredShard(root, SHARD), NAMES).stages[STAGE1.name].groups) == GROUPS


def test_spending_is_added_up_over_runs_and_kept_without_one(root: Root) -> None:
    publish(root, [CAR], [captioned(CAR, "A car.")])
    for spent in (Spending(10, 20, 0.5), None, Spending(1, 2), Spending(1, 2, 0.25)):
        write_summary(StoredShard(root, SHARD), NAMES, spent)
    found = find_summary(root, SHARD)
    assert found
    assert found.spent == Spending(12, 24, 0.75)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[", b'{"shard": 1}', b"\xff"])
def test_damaged_summary_counts_as_missing_and_is_replaced(root: Root, damage: bytes) -> None:
    publish(root, [CAR], [captioned(CAR, "A car.")])
    root.write(summary_path(SHARD), damage)
    assert find_summary(root, SHARD) is None
    write_summary(StoredShard(root, SHARD), NAMES)
    assert find_summary(root, SHARD)


def test_summary_of_another_release_is_an_error(root: Root) -> None:
    publish(root, [CAR], [captioned(CAR, "A car.")])
    data = encode_summary(write_summary(StoredShard(root, SHARD), NAMES)).replace(b'"windows"', b'"rows"')
    with pytest.raises(TableError, match="damaged or of another release"):
        decode_summary(data)


def test_empty_shard_has_a_summary(root: Root) -> None:
    rows: list[ManifestRow] = []
    publish(root, rows)
    assert write_summary(StoredShard(root, SHARD), NAMES).windows == 0
