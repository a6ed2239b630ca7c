from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.prefix_cache import CacheHits
from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.checks.findings import (
    CHECKS,
    EXAMPLE_CHARACTERS,
    LEAST_EARLIER_SHARDS,
    Finding,
    Looked,
    adds_to_stage1,
    few_duplicates,
    few_failed,
    few_flagged,
    few_truncated,
    find,
    prefix_cache_hits,
    rows_complete,
    said,
    schema_known,
    usual_length,
    weights_verified,
)
from caption_assets.models.weights import WeightFile, WeightsManifest
from caption_assets.store.table_file import with_facts
from caption_assets.store.tables import CaptionRow, ManifestRow, schema_of
from tests.report.windows import broken, captioned, failed, window

pytestmark = pytest.mark.fast


def clips(count: int) -> list[ManifestRow]:
    return [window(f"clip-{number:03}.mp4") for number in range(count)]


def looked(
    rows: Sequence[CaptionRow], manifest: Sequence[ManifestRow] | None = None, table: str = STAGE1.name
) -> Looked:
    """A table as it should be, but for its rows."""
    expected = clips(len(rows)) if manifest is None else manifest
    return Looked(table, with_facts(schema_of(table), {}), rows, said(rows), expected)


def captions(*texts: str, **changes: object) -> list[CaptionRow]:
    """A caption a clip."""
    return [captioned(clip, text, **changes) for clip, text in zip(clips(len(texts)), texts, strict=True)]


texts = st.lists(st.text() | st.lists(st.sampled_from(["a", "red", "CAR", "\u8eca", "."])).map(" ".join), max_size=8)


@given(texts, texts, st.lists(st.floats(0, 1e4)), st.sampled_from([STAGE1.name, STAGE2.name]))
def test_there_is_one_finding_for_each_check_whatever_is_said(
    stage1: list[str], stage2: list[str], earlier: list[float], table: str
) -> None:
    rows = captions(*stage2)
    seen = replace(looked(rows, table=table), stage1=said(captions(*stage1)))
    found = find(seen, max_failed_fraction=0.05, earlier_means=earlier)
    assert [finding.check for finding in found] == list(CHECKS[table])
    assert all(finding.message for finding in found)
    assert not any(finding.is_error for finding in found)


def test_an_empty_table_of_an_empty_manifest_passes() -> None:
    assert all(finding.passed for finding in find(looked([]), max_failed_fraction=0.0, earlier_means=[]))


@given(st.permutations(range(5)), st.integers(0, 5))
def test_rows_are_complete_only_as_in_the_manifest(order: list[int], kept: int) -> None:
    manifest = clips(5)
    rows = [captioned(manifest[place], "A car.") for place in order[:kept]]
    is_whole = kept == 5 and order == list(range(5))
    assert rows_complete(looked(rows, manifest)).passed is is_whole


def test_rows_that_are_missing_or_too_many_are_counted() -> None:
    manifest = clips(3)
    rows = [captioned(manifest[0], "A car."), captioned(window("other.mp4"), "A dog.")]
    finding = rows_complete(looked(rows, manifest))
    assert finding.is_error
    assert (finding.facts["missing"], finding.facts["too_many"]) == (2, 1)


@pytest.mark.parametrize(
    ("schema", "said_of_it"),
    [
        (schema_of(STAGE1.name), "schema version none"),
        (with_facts(schema_of(STAGE1.name), {"schema_version": "1"}), "schema version 1"),
        (with_facts(schema_of(STAGE1.name).remove(0), {}), "other columns: clip_key"),
        (with_facts(schema_of(STAGE2.name), {}), "other columns: stage1_fingerprint"),
    ],
)
def test_a_schema_of_another_version_is_told(schema: object, said_of_it: str) -> None:
    finding = schema_known(replace(looked([]), schema=schema))
    assert finding.is_error
    assert said_of_it in finding.message


def test_clips_that_cannot_be_read_do_not_count_as_failed() -> None:
    manifest = [*clips(9), broken("x.mp4"), window("z.mp4")]
    rows = [captioned(clip, "A car.") for clip in manifest[:9]]
    rows += [failed(manifest[9], "unreadable"), failed(manifest[10])]
    assert few_failed(looked(rows, manifest), 0.1).passed
    finding = few_failed(looked(rows, manifest), 0.09)
    assert finding.is_error
    assert finding.facts["failed"] == 1
    assert "'z.mp4', window 0: the engine died" in finding.message


def shares(count: int, of: int) -> dict[str, bool]:
    """Whether findings pass where that many of so many captions are cut off, flagged, or repeat another clip's."""
    bad, good = [f"caption {number}" for number in range(count)], [f"other {number}" for number in range(of - count)]
    cut = [*captions(*bad, finish_reason="length"), *captions(*good)]
    flagged = [*captions(*bad, flags=("refusal",)), *captions(*good)]
    repeated = captions(*["The same."] * (count + 1), *good[:-1])
    return {
        "truncated": few_truncated(said(cut)).passed,
        "flagged": few_flagged(said(flagged)).passed,
        "duplicates": few_duplicates(said(repeated)).passed,
    }


@pytest.mark.parametrize(
    ("count", "passing"),
    [
        (5, {"truncated", "flagged", "duplicates"}),
        (6, {"flagged", "duplicates"}),
        (10, {"flagged", "duplicates"}),
        (11, set()),
    ],
)
def test_a_share_may_reach_its_limit_and_not_pass_it(count: int, passing: set[str]) -> None:
    assert {name for name, passed in shares(count, 100).items() if passed} == passing


def test_flags_are_told_by_name() -> None:
    rows = [*captions("A car.", flags=("refusal", "cut_off")), *captions("A dog.", flags=("cut_off",))]
    facts = few_flagged(said(rows)).facts
    assert (facts["flag_cut_off"], facts["flag_refusal"], facts["count"]) == (2, 1, 2)


def test_captions_that_differ_in_case_and_punctuation_are_the_same() -> None:
    finding = few_duplicates(said(captions("A red car!", "a red  car", "A red cart.")))
    assert (finding.facts["count"], finding.facts["most_clips_with_one_caption"]) == (1, 2)


def test_windows_of_one_clip_may_say_the_same() -> None:
    rows = [captioned(window("a.mp4", number), "A red car.") for number in range(9)]
    assert few_duplicates(said(rows)).facts["count"] == 0


@given(st.lists(st.sampled_from(["a car", "a dog", "a tree"])))
def test_as_many_captions_are_duplicates_as_would_have_to_go(texts: list[str]) -> None:
    assert few_duplicates(said(captions(*texts))).facts["count"] == len(texts) - len(set(texts))


def length_of(words: int, earlier: Sequence[float]) -> Finding:
    return usual_length(said(captions("word " * words)), earlier)


def test_a_length_is_compared_only_with_enough_earlier_shards() -> None:
    assert length_of(500, [50.0] * (LEAST_EARLIER_SHARDS - 1)).passed
    assert not length_of(500, [50.0] * LEAST_EARLIER_SHARDS).passed


@pytest.mark.parametrize(("words", "passed"), [(45, True), (55, True), (44, False), (56, False), (0, False)])
def test_where_earlier_shards_are_all_alike_a_tenth_is_allowed(words: int, passed: bool) -> None:
    assert length_of(words, [50.0] * 9).passed is passed


@pytest.mark.parametrize(("words", "passed"), [(30, True), (70, True), (10, False), (90, False)])
def test_where_earlier_shards_differ_three_standard_deviations_are_allowed(words: int, passed: bool) -> None:
    assert length_of(words, [40.0, 45.0, 50.0, 55.0, 60.0]).passed is passed


def test_stage_2_adds_nothing_where_it_is_the_same_or_much_shorter() -> None:
    stage1 = said(captions(*["One two three four five six seven eight nine ten."] * 4))
    stage2 = said(
        captions(
            "one two three four five six seven eight nine TEN",
            "One two three four five six seven.",
            "One two three four five six seven eight.",
            "One two three four five six seven eight nine ten eleven.",
        )
    )
    finding = adds_to_stage1(stage1, stage2)
    assert not finding.passed
    assert (finding.facts["equal"], finding.facts["shorter"], finding.facts["count"]) == (1, 1, 2)


def test_stage_2_is_compared_only_where_there_is_a_stage_1_caption() -> None:
    finding = adds_to_stage1(said([failed(clip) for clip in clips(2)]), said(captions("A car.", "A dog.")))
    assert finding.passed
    assert finding.message == "0 of 0 captions add nothing to stage 1"


def test_an_example_is_cut_to_a_length_that_can_be_shown() -> None:
    finding = few_truncated(said(captions("x" * 100_000, finish_reason="length")))
    assert len(str(finding.facts["example"])) == EXAMPLE_CHARACTERS


def test_damaged_weights_are_named() -> None:
    manifest = WeightsManifest("org/model", "1", (WeightFile("a.json", 5, "0" * 64), WeightFile("b.json", 5, "1" * 64)))
    assert weights_verified([manifest], {}).passed
    finding = weights_verified([manifest], {"b.json": "it has 4 bytes, but should have 5"})
    assert finding.is_error
    assert finding.message.startswith("1 of 2 files are not what the manifest says; the first: b.json: it has 4 bytes")


@pytest.mark.parametrize(
    ("hits", "passed", "reason"),
    [
        (CacheHits(50, 100), True, "50 of 100 predicted tokens"),
        (CacheHits(49, 100), False, "give the KV cache more memory"),
        (CacheHits(0, 100, is_hybrid=True), False, "(issues 43587 and 51198)"),
        (CacheHits(), True, "no window"),
    ],
)
def test_few_hits_in_the_prefix_cache_are_told_with_the_reason(hits: CacheHits, passed: bool, reason: str) -> None:
    finding = prefix_cache_hits(with_facts(schema_of(STAGE2.name), hits.facts))
    assert finding.passed is passed
    assert reason in finding.message
    assert finding.facts.get("predicted_tokens", 0) == hits.predicted
