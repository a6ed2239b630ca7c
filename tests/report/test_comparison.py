import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.report.comparison import Comparison, compare_roots, comparison_page, figures, pair_rows
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, TableError
from tests.cli import run_cli
from tests.report.windows import PROMPTS, SHARD, broken, captioned, failed, publish, window
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

CLIPS = [window(f"{number}.mp4") for number in range(5)]
ROWS_A = [captioned(clip, "A red car turns.") for clip in CLIPS]
ROWS_B = [
    ROWS_A[0],
    captioned(CLIPS[1], "A blue car turns.", flags=("refusal",)),
    failed(CLIPS[2]),
    captioned(CLIPS[3], "Rain."),
]


def comparison_of(a: list[CaptionRow], b: list[CaptionRow]) -> Comparison:
    return Comparison(SHARD, STAGE2.name, ("a", "b"), pair_rows(a, b), (None, None))


def test_pairs_are_classified_by_change() -> None:
    kinds = [pair.kind for pair in pair_rows(ROWS_A[:4], [*ROWS_B, captioned(window("new.mp4"), "New.")])]
    assert kinds == ["same", "changed", "ok \N{RIGHTWARDS ARROW} failed", "changed", "only in B"]


def test_windows_with_other_time_ranges_are_not_paired() -> None:
    longer = replace(ROWS_A[0], end_seconds=8.0)
    assert [pair.kind for pair in pair_rows(ROWS_A[:1], [longer])] == ["only in A", "only in B"]


def test_rows_are_paired_regardless_of_window_ids() -> None:
    copy = replace(ROWS_A[0], window_id="other")
    assert [pair.kind for pair in pair_rows(ROWS_A[:1], [copy])] == ["same"]


def test_unreadable_clips_are_paired() -> None:
    row = failed(broken("torn.mp4"))
    assert [pair.kind for pair in pair_rows([row], [row])] == ["same"]


def test_statistics_summarize_the_pairs() -> None:
    statistics = comparison_of(ROWS_A, ROWS_B).statistics
    assert statistics.both == 4
    assert statistics.kinds == {"changed": 2, "same": 1, "ok \N{RIGHTWARDS ARROW} failed": 1, "only in A": 1}
    assert statistics.words == pytest.approx((4.0, 3.0))
    assert statistics.flagged == (0, 1)
    assert statistics.similarity[0.5] == pytest.approx(0.8)
    assert statistics.similarity[0.25] == pytest.approx((2 / 7 + 0.8) / 2)


def test_statistics_of_empty_tables_have_no_means() -> None:
    statistics = comparison_of([], []).statistics
    assert statistics.both == 0
    assert statistics.words == (None, None)
    assert statistics.similarity == {}
    assert figures(statistics)


@given(
    st.lists(st.sampled_from(ROWS_A), unique_by=lambda row: row.key), st.lists(st.sampled_from(ROWS_B), unique_by=id)
)
def test_pairing_keeps_every_row(a: list[CaptionRow], b: list[CaptionRow]) -> None:
    pairs = pair_rows(a, b)
    assert [pair.a for pair in pairs if pair.a] == a
    assert sorted(pair.b.clip_key for pair in pairs if pair.b) == sorted(row.clip_key for row in b)


def test_page_shows_changed_windows_with_marks_on_both_sides() -> None:
    page = comparison_page(comparison_of(ROWS_A, ROWS_B))
    assert [row.name for row in page.rows] == ["1.mp4", "2.mp4", "3.mp4", "4.mp4"]
    assert [side.text for side in page.rows[0].sides] == [("A ", "red", " car turns."), ("A ", "blue", " car turns.")]
    assert [side.missing for side in page.rows[1].sides] == [None, "engine: the engine crashed"]
    assert page.rows[3].sides[1].missing == "no such window"


def test_comparison_reads_prompts_from_the_tables(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish(root, CLIPS, ROWS_A, ROWS_A)
    assert compare_roots(root, root, SHARD, STAGE1.name).prompts == (PROMPTS[STAGE1.name],) * 2


def test_missing_table_is_named(tmp_path: Path) -> None:
    a, b = Root.open(str(tmp_path / "a")), Root.open(str(tmp_path / "b"))
    publish(a, CLIPS, ROWS_A)
    with pytest.raises(TableError, match=r"b/stage1_captions/.* does not exist: materialize stage1_captions"):
        compare_roots(a, b, SHARD, STAGE1.name)


def test_compare_command_prints_statistics_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a", tmp_path / "[b]"
    publish(Root.open(str(a)), CLIPS, ROWS_A)
    publish(Root.open(str(b)), CLIPS, [*ROWS_B, captioned(CLIPS[4], "Night.")])
    page = tmp_path / "out" / "page.html"
    assert run_cli("compare", str(a), str(b), SHARD, "--stage", "1", "--output", str(page)) is None
    printed = capsys.readouterr().out
    assert f"B: stage1_captions of {SHARD} in {b}" in printed
    assert "changed" in printed
    assert "A blue car turns" not in printed
    assert page.read_text().startswith("<!doctype html>")


def test_compare_command_of_a_missing_table_is_one_message(tmp_path: Path) -> None:
    error = run_cli("compare", str(tmp_path), str(tmp_path), SHARD)
    assert re.match(r"error: .* does not exist: materialize stage2_captions", str(error))
