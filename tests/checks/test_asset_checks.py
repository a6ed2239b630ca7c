from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.output import ChoiceOutput
from caption_assets.captioning.prefix_cache import CacheHits
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.checks.asset_checks import (
    EXAMPLE_CHARACTERS,
    MIN_EARLIER_SHARDS,
    Finding,
    adds_to,
    checks_of,
    few_duplicates,
    few_failed,
    few_flagged,
    few_truncated,
    prefix_cache_hits,
    rows_complete,
    run_checks,
    schema_known,
    usual_length,
    weights_verified,
)
from caption_assets.checks.stored_tables import Caption, StoredTable, captions_of
from caption_assets.models.weights import WeightFile, WeightsManifest
from caption_assets.store.failure_limits import FailureLimits
from caption_assets.store.table_file import with_file_metadata
from caption_assets.store.tables import CAPTION_SCHEMA, CaptionRow, ManifestRow, caption_schema
from tests.report.windows import broken, captioned, failed, window
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast


def clips(count: int) -> list[ManifestRow]:
    return [window(f"clip-{number:03}.mp4") for number in range(count)]


def stored(rows: Sequence[CaptionRow], stage: Stage = STAGE1) -> StoredTable:
    """A table of these rows, valid in all other respects."""
    return StoredTable.of(stage.name, with_file_metadata(caption_schema(stage.columns), {}), rows)


def rows_of(*texts: str, **changes: object) -> list[CaptionRow]:
    """One row a clip."""
    return [captioned(clip, text, **changes) for clip, text in zip(clips(len(texts)), texts, strict=True)]


def captions(*texts: str, **changes: object) -> list[Caption]:
    return captions_of(rows_of(*texts, **changes))


SAMPLE = built_in("sample")
ANSWERS = {"attributes": '{"shape": "square", "colour": "red"}', "alignment": "yes"}
"""Answers of the stages that do not answer in text."""

NO_FAILURES = FailureLimits(failed=replace(FailureLimits().failed, fraction=0.0, number=0))

texts = st.lists(st.text() | st.lists(st.sampled_from(["a", "red", "CAR", "\u8eca", "."])).map(" ".join), max_size=8)


@given(texts, texts, st.lists(st.floats(0, 1e4)), st.sampled_from(SAMPLE.stages))
def test_run_checks_returns_one_finding_for_each_check(
    needed: list[str], answers: list[str], earlier: list[float], stage: Stage
) -> None:
    answers = [ANSWERS.get(stage.name, answer) for answer in answers]
    found = run_checks(
        stored(rows_of(*answers), stage),
        SAMPLE,
        clips(len(answers)),
        {STAGE1.name: captions(*needed)} if stage.name == STAGE2.name else {},
        limits=FailureLimits(),
        earlier_means=earlier,
    )
    assert [finding.check for finding in found] == checks_of(SAMPLE, stage)
    assert all(finding.message for finding in found)
    assert not any(finding.is_error for finding in found)


def test_run_checks_passes_an_empty_table_of_an_empty_manifest() -> None:
    found = run_checks(stored([]), SAMPLE, [], {}, limits=NO_FAILURES, earlier_means=[])
    assert all(finding.passed for finding in found)


def test_checks_suit_the_output_of_each_stage() -> None:
    names = {stage.name: [check.name for check in checks_of(SAMPLE, stage)] for stage in SAMPLE.stages}
    table = ["rows_complete", "schema", "failed_fraction"]
    text = [*table, "truncated_fraction", "flagged_fraction", "duplicate_captions", "caption_length"]
    assert names == {
        "stage1_captions": text,
        "stage2_captions": [*text, "adds_to_stage1", "prefix_cache_hits"],
        "attributes": [*table, "flagged_fraction", "caption_length", "prefix_cache_hits"],
        "alignment": [*table, "prefix_cache_hits"],
        "short": text,
    }


def test_equal_json_and_choices_of_many_clips_pass_all_checks() -> None:
    for name, answer in ANSWERS.items():
        table = stored(rows_of(*[answer] * 50), SAMPLE.stage(name))
        found = run_checks(table, SAMPLE, clips(50), {}, limits=NO_FAILURES, earlier_means=[])
        assert [finding.message for finding in found if not finding.passed] == []


def test_stage_is_compared_with_each_text_that_it_needs() -> None:
    dense = Stage("dense", "Join {short} and {people} for {mood}.")
    people = Stage("people", "Who is there?")
    mood = Stage("mood", "Which mood?", ChoiceOutput(("calm", "tense")))
    graph = StageGraph("mine", (Stage("short", "Describe."), people, mood, dense))
    assert [check.name for check in checks_of(graph, dense) if check.name.startswith("adds")] == [
        "adds_to_short",
        "adds_to_people",
    ]


@given(st.permutations(range(5)), st.integers(0, 5))
def test_rows_complete_passes_only_the_manifests_rows_in_order(order: list[int], kept: int) -> None:
    manifest = clips(5)
    rows = [captioned(manifest[number], "A car.") for number in order[:kept]]
    is_complete = kept == 5 and order == list(range(5))
    assert rows_complete(stored(rows), manifest).passed is is_complete


def test_rows_complete_counts_missing_and_extra_rows() -> None:
    manifest = clips(3)
    rows = [captioned(manifest[0], "A car."), captioned(window("other.mp4"), "A dog.")]
    finding = rows_complete(stored(rows), manifest)
    assert finding.is_error
    assert (finding.metadata["missing"], finding.metadata["too_many"]) == (2, 1)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (CAPTION_SCHEMA, "schema version none"),
        (with_file_metadata(CAPTION_SCHEMA, {"schema_version": "1"}), "schema version 1"),
        (with_file_metadata(CAPTION_SCHEMA.remove(0), {}), "these columns differ: clip_key"),
        (with_file_metadata(caption_schema(STAGE2.columns), {}), "these columns differ: upstream_fingerprints"),
    ],
)
def test_schema_check_names_another_version_and_differing_columns(schema: object, reason: str) -> None:
    finding = schema_known(replace(stored([]), schema=schema), STAGE1.columns)
    assert finding.is_error
    assert reason in finding.message


def test_schema_check_accepts_the_upstream_column_of_earlier_releases() -> None:
    schema = with_file_metadata(CAPTION_SCHEMA.append(pa.field("stage1_fingerprint", pa.string())), {})
    assert schema_known(replace(stored([], STAGE2), schema=schema), STAGE2.columns).passed


def test_schema_check_accepts_tables_of_earlier_releases_without_previous_texts() -> None:
    schema = with_file_metadata(CAPTION_SCHEMA.remove(CAPTION_SCHEMA.get_field_index("previous")), {})
    assert schema_known(replace(stored([]), schema=schema), STAGE1.columns).passed


def test_failed_fraction_ignores_unreadable_clips() -> None:
    manifest = [*clips(9), broken("x.mp4"), window("z.mp4")]
    rows = [captioned(clip, "A car.") for clip in manifest[:9]]
    rows += [failed(manifest[9], "unreadable"), failed(manifest[10])]
    assert few_failed(stored(rows), FailureLimits()).passed
    finding = few_failed(stored(rows), NO_FAILURES)
    assert finding.is_error
    assert finding.metadata["failed"] == 1
    assert "'z.mp4', window 0: the engine crashed" in finding.message


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (5, {"truncated", "flagged", "duplicates"}),
        (6, {"flagged", "duplicates"}),
        (10, {"flagged", "duplicates"}),
        (11, set()),
    ],
)
def test_share_of_captions_may_reach_its_limit_and_not_exceed_it(count: int, expected: set[str]) -> None:
    bad, good = [f"caption {number}" for number in range(count)], [f"other {number}" for number in range(100 - count)]
    findings = {
        "truncated": few_truncated([*captions(*bad, finish_reason="length"), *captions(*good)]),
        "flagged": few_flagged([*captions(*bad, flags=("refusal",)), *captions(*good)]),
        "duplicates": few_duplicates(captions(*["The same."] * (count + 1), *good[:-1])),
    }
    assert {name for name, finding in findings.items() if finding.passed} == expected


def test_flagged_fraction_counts_each_flag() -> None:
    flagged = [*captions("A car.", flags=("refusal", "cut_off")), *captions("A dog.", flags=("cut_off",))]
    metadata = few_flagged(flagged).metadata
    assert (metadata["flag_cut_off"], metadata["flag_refusal"], metadata["count"]) == (2, 1, 2)


def test_flagged_fraction_ignores_reductions() -> None:
    assert few_flagged(captions("A car.", reductions=("fewer_frames",))).metadata["count"] == 0


def test_duplicates_are_found_regardless_of_case_and_punctuation() -> None:
    finding = few_duplicates(captions("A red car!", "a red  car", "A red cart."))
    assert (finding.metadata["count"], finding.metadata["most_clips_with_one_caption"]) == (1, 2)


def test_windows_of_one_clip_are_no_duplicates() -> None:
    rows = [captioned(window("a.mp4", number), "A red car.") for number in range(9)]
    assert few_duplicates(captions_of(rows)).metadata["count"] == 0


@given(st.lists(st.sampled_from(["a car", "a dog", "a tree"])))
def test_duplicates_of_a_group_are_all_but_one(texts: list[str]) -> None:
    assert few_duplicates(captions(*texts)).metadata["count"] == len(texts) - len(set(texts))


def length_finding(words: int, earlier: Sequence[float]) -> Finding:
    return usual_length(captions("word " * words), earlier)


def test_length_check_needs_enough_earlier_shards() -> None:
    assert length_finding(500, [50.0] * (MIN_EARLIER_SHARDS - 1)).passed
    assert not length_finding(500, [50.0] * MIN_EARLIER_SHARDS).passed


@pytest.mark.parametrize(("words", "passed"), [(45, True), (55, True), (44, False), (56, False), (0, False)])
def test_length_check_accepts_a_tenth_if_earlier_shards_are_equal(words: int, passed: bool) -> None:
    assert length_finding(words, [50.0] * 9).passed is passed


@pytest.mark.parametrize(("words", "passed"), [(30, True), (70, True), (10, False), (90, False)])
def test_length_check_accepts_three_standard_deviations(words: int, passed: bool) -> None:
    assert length_finding(words, [40.0, 45.0, 50.0, 55.0, 60.0]).passed is passed


def test_stage2_adds_nothing_if_it_equals_stage1_or_is_much_shorter() -> None:
    stage1 = captions(*["One two three four five six seven eight nine ten."] * 4)
    stage2 = captions(
        "one two three four five six seven eight nine TEN",
        "One two three four five six seven.",
        "One two three four five six seven eight.",
        "One two three four five six seven eight nine ten eleven.",
    )
    finding = adds_to(STAGE1.name, stage1, stage2)
    assert not finding.passed
    assert (finding.metadata["equal"], finding.metadata["shorter"], finding.metadata["count"]) == (1, 1, 2)


def test_stage2_is_compared_only_with_existing_stage1_captions() -> None:
    finding = adds_to(STAGE1.name, [], captions("A car.", "A dog."))
    assert finding.passed
    assert finding.message == "0 of 0 captions add nothing to stage1_captions"


def test_example_of_a_finding_has_a_maximum_length() -> None:
    finding = few_truncated(captions("x" * 100_000, finish_reason="length"))
    assert len(str(finding.metadata["example"])) == EXAMPLE_CHARACTERS


def test_weights_check_names_a_damaged_file() -> None:
    manifest = WeightsManifest("org/model", "1", (WeightFile("a.json", 5, "0" * 64), WeightFile("b.json", 5, "1" * 64)))
    assert weights_verified([manifest], {}).passed
    finding = weights_verified([manifest], {"b.json": "it has 4 bytes, but should have 5"})
    assert finding.is_error
    assert finding.message.startswith("1 of 2 files do not match the manifest; the first: b.json: it has 4 bytes")


@pytest.mark.parametrize(
    ("hits", "passed", "reason"),
    [
        (CacheHits(50, 100), True, "50 of 100 predicted tokens"),
        (CacheHits(49, 100), False, "give the KV cache more memory"),
        (CacheHits(0, 100, is_hybrid=True), False, "(issues 43587 and 51198)"),
        (CacheHits(), True, "no window"),
    ],
)
def test_cache_check_gives_the_reason_for_few_hits(hits: CacheHits, passed: bool, reason: str) -> None:
    finding = prefix_cache_hits(hits.file_metadata)
    assert finding.passed is passed
    assert reason in finding.message
    assert finding.metadata.get("predicted_tokens", 0) == hits.predicted
