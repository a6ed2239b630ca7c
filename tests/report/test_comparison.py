import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.comparison import (
    Comparison,
    Pair,
    compare_previous,
    compare_roots,
    compare_versions,
    comparison_page,
    figures,
    find_stage,
    pair_rows,
)
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, PreviousText, TableError, publish_captions
from tests.cli import run_cli
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
    in_a, in_b = table_of(STAGE2, a), table_of(STAGE2, b)
    return Comparison(SHARD, ("a", "b"), (in_a, in_b), pair_rows(in_a, in_b))


def pairs_of(a: list[CaptionRow], b: list[CaptionRow]) -> Sequence[Pair]:
    return comparison_of(a, b).pairs


def test_pairs_are_classified_by_change() -> None:
    kinds = [pair.kind for pair in pairs_of(ROWS_A[:4], [*ROWS_B, captioned(window("new.mp4"), "New.")])]
    assert kinds == ["same", "changed", "ok \N{RIGHTWARDS ARROW} failed", "changed", "only in B"]


def test_windows_with_other_time_ranges_are_not_paired() -> None:
    longer = replace(ROWS_A[0], end_seconds=8.0)
    assert [pair.kind for pair in pairs_of(ROWS_A[:1], [longer])] == ["only in A", "only in B"]


def test_rows_are_paired_regardless_of_window_ids() -> None:
    copy = replace(ROWS_A[0], window_id="other")
    assert [pair.kind for pair in pairs_of(ROWS_A[:1], [copy])] == ["same"]


def test_unreadable_clips_are_paired() -> None:
    row = failed(broken("torn.mp4"))
    assert [pair.kind for pair in pairs_of([row], [row])] == ["same"]


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
    pairs = pairs_of(a, b)
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
    publish(root, CLIPS, ROWS_A)
    other = Root.open(str(tmp_path / "other"))
    publish(other, CLIPS, [replace(row, caption="A bus.") for row in ROWS_A])
    [provenance] = comparison_page(compare_roots(root, other, SHARD, STAGE1.name)).provenance
    assert dict(provenance)["Prompt"] == f"general: {PROMPTS[STAGE1.name]}"


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
    assert printed.startswith(f"stage1_captions of {SHARD}\nA: {a}\nB: {b}\n")
    assert "changed" in printed
    assert "A blue car turns" not in printed
    assert page.read_text().startswith("<!doctype html>")


def test_compare_command_of_a_missing_table_is_one_message(tmp_path: Path) -> None:
    error = run_cli("compare", str(tmp_path), str(tmp_path), SHARD, "--stage", "stage2_captions")
    assert re.match(r"error: .* does not exist: materialize stage2_captions", str(error))


def test_json_is_compared_field_by_field() -> None:
    stage = FOUR.stage("attributes")
    a, b = (
        table_of(stage, [captioned(CLIPS[0], json.dumps({"subjects": ["a car"], "camera": motion}))])
        for motion in ("static", "moving")
    )
    [row] = comparison_page(Comparison(SHARD, ("a", "b"), (a, b), pair_rows(a, b))).rows
    assert row.sides[0].text[1::2] == ("static",)
    assert row.sides[1].text[1::2] == ("moving",)
    assert '[\n    "a car"\n  ]' in row.sides[1].text[0]


def with_previous(row: CaptionRow, caption: str, **values: Any) -> CaptionRow:
    provenance: dict[str, Any] = {"prompt_name": "general", "prompt_hash": "h1", "model": "other", **values}
    return replace(row, previous=PreviousText(caption, **provenance))


def test_previous_texts_are_compared_with_the_present_ones() -> None:
    rows = [
        with_previous(ROWS_A[0], "A red car turns."),
        with_previous(ROWS_A[1], "A blue car turns.", flags=("boilerplate",)),
        with_previous(failed(CLIPS[2]), "A red car turns."),
        ROWS_A[3],
    ]
    table = table_of(STAGE1, rows)
    comparison = compare_versions(table, SHARD)
    assert comparison.statistics.kinds == {"same": 1, "changed": 1, "ok \N{RIGHTWARDS ARROW} failed": 1}
    assert comparison.statistics.flagged == (1, 0)
    assert comparison.left_out == [("rows without a previous text", "1")]
    changed, lost = comparison_page(comparison).rows
    assert [side.text for side in changed.sides] == [("A ", "blue", " car turns."), ("A ", "red", " car turns.")]
    assert [side.missing for side in lost.sides] == [None, "engine: the engine crashed"]


def test_comparison_with_previous_texts_shows_both_prompts(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    rows = [with_previous(ROWS_A[0], "A car."), with_previous(ROWS_A[1], "A car.", prompt_hash="h2")]
    metadata = {"prompt": "Describe all.", "previous_prompts": '{"h1": "Describe it."}', "recipe_version": "1"}
    publish_captions(root, STAGE1.name, SHARD, rows, [row.key for row in rows], metadata)
    page = comparison_page(compare_versions(StoredShard(root, SHARD).table(STAGE1.name), SHARD))
    prompts = [dict(page.provenance[side.provenance or 0])["Prompt"] for row in page.rows for side in row.sides]
    assert prompts == ["general: Describe it.", "general: Describe all.", "general: unknown", "general: Describe all."]


def test_previous_json_is_compared_field_by_field() -> None:
    stage = FOUR.stage("attributes")
    rows = [with_previous(captioned(CLIPS[0], '{"camera": "moving"}'), '{"camera": "static"}')]
    [row] = comparison_page(compare_versions(table_of(stage, rows), SHARD)).rows
    assert [(side.is_json, side.text[1::2]) for side in row.sides] == [(True, ("static",)), (True, ("moving",))]


def test_previous_choices_have_their_probability_and_score() -> None:
    stage = FOUR.stage("alignment")
    yes = four_captions(CLIPS[0])["alignment"]
    rows = [with_previous(yes, "no", probability=0.7, score=0.3)]
    [row] = comparison_page(compare_versions(table_of(stage, rows), SHARD)).rows
    assert [(dict(side.choices), side.score) for side in row.sides] == [
        ({"no": 0.7, "yes": 0.3}, 0.3),
        ({"yes": 0.9, "no": 0.1}, 0.9),
    ]


@pytest.mark.parametrize(("stage", "caption"), [("attributes", '{"camera": "static"}'), ("alignment", "yes")])
def test_previous_text_of_a_stage_that_had_another_output_is_shown_as_text(stage: str, caption: str) -> None:
    rows = [with_previous(replace(four_captions(CLIPS[0])[stage], caption=caption), "A car.")]
    [row] = comparison_page(compare_versions(table_of(FOUR.stage(stage), rows), SHARD)).rows
    before, after = row.sides
    assert ("".join(before.text), before.is_json, before.choices) == ("A car.", False, ())
    assert after.is_json or after.choices


def test_compare_command_with_previous_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path))
    publish(Root.open(str(tmp_path)), CLIPS[:2], [with_previous(ROWS_A[0], "A car."), ROWS_A[1]])
    page = tmp_path / "page.html"
    assert run_cli("compare", "--previous", SHARD, "--output", str(page)) is None
    printed = capsys.readouterr().out
    assert printed.startswith(f"stage1_captions of {SHARD}\nA: previous texts\nB: present texts\n")
    assert re.search(r"rows without a previous text +1 ", printed)
    assert '"text":["A car."]' in page.read_text()


def test_compare_command_without_previous_texts_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path))
    publish(Root.open(str(tmp_path)), CLIPS, ROWS_A)
    error = run_cli("compare", "--previous", SHARD)
    assert re.match(r"error: stage1_captions of shard 'shard' in .* has no previous texts", str(error))


def test_last_stage_with_previous_texts_is_compared_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, clip = Root.open(str(tmp_path)), CLIPS[0]
    short = with_previous(four_captions(clip)["short"], "A bus.")
    publish_four(root, [clip], short=short)
    compare_previous(root, SHARD, None, tmp_path / "page.html")
    assert capsys.readouterr().out.startswith("short of shard\n")
    with pytest.raises(TableError, match=r"alignment of shard 'shard' .* has no previous texts: .*; use short$"):
        compare_previous(root, SHARD, "alignment", tmp_path / "page.html")
    choice = with_previous(four_captions(clip)["alignment"], "no", probability=0.6)
    publish_four(root, [clip], alignment=choice)
    compare_previous(root, SHARD, None, tmp_path / "page.html")
    assert capsys.readouterr().out.startswith("alignment of shard\n")


def test_choices_are_compared_as_a_whole() -> None:
    yes = four_captions(CLIPS[0])["alignment"]
    no = replace(yes, caption="no", probabilities={"yes": 0.2, "no": 0.8})
    a, b = (table_of(FOUR.stage("alignment"), [row]) for row in (yes, no))
    comparison = Comparison(SHARD, ("a", "b"), (a, b), pair_rows(a, b))
    assert (comparison.statistics.words, comparison.statistics.similarity) == ((None, None), {})
    [row] = comparison_page(comparison).rows
    assert [side.score for side in row.sides] == [0.9, 0.2]
    assert row.changed


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("attributes", "attributes"),
        ("elsewhere", "elsewhere"),
        (None, "dense_captions"),
        ("1", "short"),
        ("4", "alignment"),
    ],
)
def test_stage_is_found_by_name_and_position(tmp_path: Path, given: str | None, found: str) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, CLIPS[:1])
    assert find_stage(root, SHARD, given) == found


@pytest.mark.parametrize("given", ["0", "5"])
def test_position_without_a_stage_is_an_error(tmp_path: Path, given: str) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, CLIPS[:1])
    with pytest.raises(TableError, match=f"no stage {given} of shard 'shard' in .*: use one of .*alignment"):
        find_stage(root, SHARD, given)


def test_root_without_captions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="contains no captions of shard 'shard'"):
        find_stage(Root.open(str(tmp_path)), SHARD, None)
