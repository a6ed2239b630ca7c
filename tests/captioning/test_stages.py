"""Tests of stages: their slots, their order in the graph, and the chains in which they run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.output import ChoiceOutput
from caption_assets.captioning.planner import chains
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.sampling import DETERMINISTIC, SamplingParams
from caption_assets.captioning.stages import Stage, StageError, StageGraph

pytestmark = pytest.mark.fast


@st.composite
def ordered_stages(draw: st.DrawFn) -> list[Stage]:
    """Stages of an acyclic graph, each after those that it needs."""
    stages: list[Stage] = []
    for number in range(draw(st.integers(1, 8))):
        names = [stage.name for stage in stages]
        needs = draw(st.lists(st.sampled_from(names), max_size=3)) if names else []
        stages.append(Stage(f"s{number}", " ".join(["Describe.", *(f"{{{name}}}" for name in needs)])))
    return stages


def ancestors(graph: StageGraph, stage: Stage) -> set[str]:
    return {*stage.needs, *(name for need in stage.needs for name in ancestors(graph, graph.stage(need)))}


@given(st.data())
def test_graph_has_each_stage_after_those_that_it_needs(data: st.DataObject) -> None:
    stages = data.draw(ordered_stages())
    assert StageGraph("test", tuple(stages)).stages == tuple(stages)
    graph = StageGraph("test", tuple(data.draw(st.permutations(stages))))
    assert sorted(stage.name for stage in graph.stages) == sorted(stage.name for stage in stages)
    for number, stage in enumerate(graph.stages):
        assert set(stage.needs) <= {earlier.name for earlier in graph.stages[:number]}


@given(ordered_stages(), st.data())
def test_circle_of_stages_is_refused(stages: list[Stage], data: st.DataObject) -> None:
    last = stages[-1]
    above = {*ancestors(StageGraph("test", tuple(stages)), last), last.name}
    first = data.draw(st.sampled_from([stage for stage in stages if stage.name in above]))
    stages[stages.index(first)] = Stage(first.name, f"{first.prompt} {{{last.name}}}")
    with pytest.raises(StageError, match=r"need each other in a circle: .*; remove a slot from one of them"):
        StageGraph("test", tuple(data.draw(st.permutations(stages))))


@given(ordered_stages())
def test_chains_contain_each_stage_once_and_none_that_may_run_at_the_same_time(stages: list[Stage]) -> None:
    graph = StageGraph("test", tuple(stages))
    found = chains(graph.stages)
    assert sorted(stage.name for chain in found for stage in chain) == sorted(stage.name for stage in stages)
    for chain in found:
        for number, stage in enumerate(chain):
            assert {earlier.name for earlier in chain[:number]} <= ancestors(graph, stage)


def test_slots_are_replaced_literally() -> None:
    stage = Stage("long", "From {short} and {other}, then {short} again.")
    assert stage.needs == ("short", "other")
    assert stage.slots == ["short", "other", "short"]
    assert stage.instruction({"short": "{other}", "other": "B"}) == "From {other} and B, then {other} again."


def test_stage_without_video_needs_a_text() -> None:
    with pytest.raises(StageError, match="long sees neither the video nor a text"):
        Stage("long", "Describe.", video=False)
    assert Stage("long", "Shorten {short}.", video=False).needs == ("short",)


def test_sampling_of_a_stage_replaces_that_of_the_recipe_and_a_choice_is_one_token() -> None:
    own = Stage("long", "Describe.", sampling={"temperature": 0.5, "max_output_tokens": 2000})
    assert own.params(SamplingParams()) == SamplingParams(temperature=0.5, max_output_tokens=2000)
    assert own.params(DETERMINISTIC) == SamplingParams(temperature=0.0, top_p=1.0, seed=0, max_output_tokens=2000)
    choice = Stage("label", "Is it?", ChoiceOutput(("yes", "no"))).params(SamplingParams())
    assert (choice.temperature, choice.repetition_penalty, choice.max_output_tokens) == (0.0, 1.0, 1)


def test_output_limit_is_named_by_what_sets_it() -> None:
    assert Stage("long", "Describe.").limit_name == "CAPTION_MAX_OUTPUT_TOKENS"
    assert Stage("long", "Describe.", sampling={"max_output_tokens": 9}).limit_name == "max_output_tokens of long"


def test_stages_upstream_are_those_needed_directly_or_through_others() -> None:
    graph = built_in("sample")
    upstream = {stage.name: [other.name for other in graph.upstream(stage)] for stage in graph.stages}
    assert upstream == {
        "stage1_captions": [],
        "stage2_captions": ["stage1_captions"],
        "attributes": [],
        "alignment": ["stage1_captions", "stage2_captions"],
        "short": ["stage1_captions", "stage2_captions"],
    }
