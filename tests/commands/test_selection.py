from __future__ import annotations

import dagster as dg
import pytest

from caption_assets.automation.shard_states import read_states
from caption_assets.commands.run import MAX_RANGE_FACTOR, plan_runs
from caption_assets.commands.selection import Need, Selection, UnknownName, check_shards, find_needs
from caption_assets.dagster_lib.private_dagster import plan_materialization
from caption_assets.store.tables import SCHEMA_VERSION
from tests.automation.conftest import AutomationHarness
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

MANIFEST, BOTH = "clip_manifest", [STAGE1.name, STAGE2.name]


def caption(harness: AutomationHarness, *shards: str) -> None:
    """Materialize all tables of shards."""
    for asset in (MANIFEST, *BOTH):
        harness.materialize(asset, *shards)


def fail(harness: AutomationHarness, asset: str, shard: str) -> None:
    """Record a failed run that planned to materialize an asset."""
    run = dg.DagsterRun(job_name="j", status=dg.DagsterRunStatus.FAILURE)
    harness.instance.add_run(run)
    plan_materialization(harness.instance, run.run_id, harness.project.key(asset), shard)


def tables(harness: AutomationHarness, selection: Selection, present: str = "abcde") -> dict[str, list[str]]:
    """The tables that a selection makes, by shard, if ``present`` are the shards in the source."""
    states = read_states(harness.instance, harness.project, harness.root)
    needs = find_needs(harness.instance, harness.settings, states)
    return {shard: selection.tables(shard, states, needs) for shard in selection.choose(states, needs, present)}


def test_missing_shards_are_new_changed_and_incomplete_ones(harness: AutomationHarness) -> None:
    caption(harness, "a", "b", "e")
    harness.materialize(MANIFEST, "c")
    harness.add("b", content=b"other")
    harness.run_sensor()
    assert tables(harness, Selection()) == {"b": [MANIFEST, *BOTH], "c": BOTH, "d": [MANIFEST, *BOTH]}


def test_missing_stage_is_made_with_what_it_needs(harness: AutomationHarness) -> None:
    caption(harness, *"abde")
    for asset in (MANIFEST, STAGE1.name):
        harness.materialize(asset, "c")
    assert tables(harness, Selection()) == {"c": BOTH}


def test_unchanged_shards_are_not_selected(harness: AutomationHarness) -> None:
    caption(harness, *"abcde")
    assert tables(harness, Selection(states=list(Need))) == {}


def test_shards_of_other_settings_are_stale_and_not_missing(harness: AutomationHarness) -> None:
    caption(harness, *"abcd")
    harness.materialize(STAGE2.name, "b", code="other")
    harness.materialize(MANIFEST, "c", code=f"{SCHEMA_VERSION}-512-128")
    assert tables(harness, Selection(states=[Need.STALE])) == {"b": [STAGE2.name], "c": [MANIFEST]}
    assert list(tables(harness, Selection())) == ["e"]
    assert list(tables(harness, Selection(states=list(Need)))) == ["b", "c", "e"]


def test_shards_of_other_weights_are_stale(harness: AutomationHarness) -> None:
    caption(harness, *"abcde")
    harness.materialize(STAGE1.name, "d", model_weights="other")
    assert tables(harness, Selection(states=[Need.STALE])) == {"d": BOTH}
    assert tables(harness, Selection(states=[Need.STALE], stages=[STAGE1.name])) == {"d": [STAGE1.name]}


def test_failed_shards_are_those_of_the_last_run(harness: AutomationHarness) -> None:
    fail(harness, MANIFEST, "b")
    fail(harness, STAGE1.name, "c")
    caption(harness, *"acd")
    assert tables(harness, Selection(states=[Need.FAILED])) == {"b": [MANIFEST, *BOTH]}


def test_named_shard_is_captioned_again_whatever_its_state(harness: AutomationHarness) -> None:
    caption(harness, *"abcd")
    assert tables(harness, Selection(["e", "b"])) == {"b": BOTH, "e": [MANIFEST, *BOTH]}


def test_stage_is_captioned_with_the_missing_ones_that_it_needs(harness: AutomationHarness) -> None:
    caption(harness, "a")
    harness.materialize(MANIFEST, "b", "c")
    harness.materialize(STAGE1.name, "b")
    found = tables(harness, Selection(stages=[STAGE1.name]))
    assert found == {"c": [STAGE1.name], "d": [MANIFEST, STAGE1.name], "e": [MANIFEST, STAGE1.name]}
    assert tables(harness, Selection(["a"], stages=[STAGE2.name])) == {"a": [STAGE2.name]}


def test_shards_that_the_source_lacks_are_not_selected(harness: AutomationHarness) -> None:
    assert list(tables(harness, Selection(limit=2), present="bcd")) == ["b", "c"]


def test_limit_takes_the_first_shards(harness: AutomationHarness) -> None:
    assert list(tables(harness, Selection(limit=2))) == ["a", "b"]


def test_unknown_shard_names_similar_ones_and_the_number_of_shards() -> None:
    known = [f"street-{number:02}" for number in range(30)]
    with pytest.raises(
        UnknownName, match=r"^unknown shard 'stret-07': did you mean street-07 or .*\? CAPTION_SOURCE has"
    ):
        check_shards(["street-01", "stret-07"], known)
    with pytest.raises(
        UnknownName, match=r"^unknown shard 'x': CAPTION_SOURCE has 30 shards: street-00, .*street-04, …$"
    ):
        check_shards(["x"], known)
    check_shards(known, known)


def test_unknown_stage_is_an_error(harness: AutomationHarness) -> None:
    with pytest.raises(
        UnknownName, match=r"^unknown stage 'stage2': the recipe has 2 stages: stage1_captions, stage2_captions$"
    ):
        Selection(stages=["stage2"]).check_stages(harness.project)


SHARDS = [f"{number:03}" for number in range(200)]


def test_runs_are_as_few_as_the_limit_allows() -> None:
    runs = plan_runs(SHARDS, SHARDS, 16)
    assert [len(requested) for _, requested in runs] == [16] * 12 + [8]
    assert [shard for _, requested in runs for shard in requested] == SHARDS


def test_run_spans_shards_that_are_not_wanted() -> None:
    [(some, requested)] = plan_runs(SHARDS, {"003", "007", "150"}, 16)
    assert (some[0], some[-1], len(some), requested) == ("003", "150", 148, ["003", "007", "150"])


def test_range_of_a_run_has_a_maximum_length() -> None:
    runs = plan_runs(SHARDS, {"000", "199"}, 2)
    assert MAX_RANGE_FACTOR * 2 < 199
    assert runs == [(["000"], ["000"]), (["199"], ["199"])]
