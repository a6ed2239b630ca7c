"""Tests of a changed recipe on a real instance. Captions are stored beforehand, so that no engine is needed."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus

from caption_assets.automation.shard_status import read_statuses
from caption_assets.automation.status_report import explanations
from caption_assets.captioning.recipe import Recipe
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.shard_events import observation
from caption_assets.definitions import build_definitions
from caption_assets.settings import Settings
from caption_assets.store.checkpoints import write_checkpoint
from caption_assets.store.root import Root
from tests.assets.conftest import ProjectHarness
from tests.assets.test_check_definitions import CLIPS, checks, full, materialized, rows_of_stages, short, store_captions
from tests.recipes import FOUR_STAGES, write_recipe

pytestmark = pytest.mark.fast

OTHERS = {"attributes": lambda _: '{"shape": "square", "colour": "red"}', "alignment": lambda _: "yes"}


class RecipeHarness(ProjectHarness):
    """A project whose recipe changes."""

    def recipe_file(self, **prompts: str) -> str:
        """A recipe file with these prompts."""
        return str(write_recipe(self.folder / "recipes" / "-".join(["as-is", *prompts]), **prompts))

    def settings(self, recipe: str) -> Settings:
        return Settings(root=str(self.root), recipe=recipe)

    def recipe(self, recipe: str) -> Recipe:
        return self.settings(recipe).caption_recipe

    def materialize(self, recipe: str, *stages: str) -> dict[str, dg.AssetMaterialization]:
        """Materialize stages, or all, of a shard whose captions are stored. Returns their materializations."""
        result = self.run(*(stages or FOUR_STAGES), partition="a", recipe=recipe)
        assert result.success
        return materialized(self, result)

    def stale(self, recipe: str) -> set[str]:
        """The stages that the UI shows as stale."""
        view = AssetGraphView.for_test(build_definitions(self.settings(recipe)), self.instance)
        resolver = CachingStaleStatusResolver(self.instance, view.asset_graph, view)
        status = {stage: resolver.get_status(dg.AssetKey(stage), "a") for stage in FOUR_STAGES}
        return {stage for stage, found in status.items() if found is not StaleStatus.FRESH}


@pytest.fixture
def project(tmp_path: Path) -> RecipeHarness:
    """A project with captions of four stages, which are not recorded."""
    project = RecipeHarness(tmp_path)
    store_captions(project, recipe=project.recipe(project.recipe_file()), others=OTHERS)
    return project


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"stage1": "Tell it."}, {"stage1_captions", "stage2_captions", "alignment"}),
        ({"stage2": "Again: {stage1_captions}"}, {"stage2_captions", "alignment"}),
        ({"attributes": "Name both."}, {"attributes"}),
        ({"alignment": "True? {stage2_captions}"}, {"alignment"}),
    ],
)
def test_changed_prompt_makes_its_stage_and_those_that_need_it_stale(
    project: RecipeHarness, changed: dict[str, str], expected: set[str]
) -> None:
    project.materialize(project.recipe_file())
    assert project.stale(project.recipe_file()) == set()
    assert project.stale(project.recipe_file(**changed)) == expected


def test_subset_of_stages_is_materialized_alone(project: RecipeHarness) -> None:
    recipe = project.recipe_file()
    assert list(project.materialize(recipe, "alignment", "attributes")) == ["attributes", "alignment"]
    assert project.stale(recipe) == {"stage1_captions", "stage2_captions"}
    assert list(project.materialize(recipe, "stage1_captions")) == ["stage1_captions"]


def test_materialization_has_the_recipe_and_after_a_change_the_old_and_the_new_prompt(project: RecipeHarness) -> None:
    before, after = project.recipe_file(), project.recipe_file(attributes="Name both.")
    first = project.materialize(before)
    assert {name: event.metadata["prompt"].value for name, event in first.items()} == {
        "stage1_captions": "Describe the video.",
        "stage2_captions": "Improve: {stage1_captions}",
        "attributes": "Name the shape and the colour as JSON.",
        "alignment": "Is it right? {stage2_captions}",
    }
    recipe = project.recipe(before)
    assert first["attributes"].metadata["recipe"].value == "four"
    assert first["attributes"].metadata["recipe_version"].value == recipe.version(recipe.graph.stage("attributes"))
    assert [name for name, event in first.items() if "changes" in event.metadata] == []
    definition = build_definitions(project.settings(after)).resolve_asset_graph().get(dg.AssetKey("attributes"))
    assert definition.metadata["prompt"] == "Name both."

    store_checkpoint(project, project.recipe(after))  # as a run with the new recipe leaves it
    second = project.materialize(after)
    assert [name for name, event in second.items() if "changes" in event.metadata] == ["attributes"]
    assert second["attributes"].metadata["prompt"].value == "Name both."
    assert str(second["attributes"].metadata["changes"].value).splitlines() == [
        "| what | old | new |",
        "| --- | --- | --- |",
        "| prompt | Name the shape and the colour as JSON. | Name both. |",
    ]
    assert project.stale(after) == set()
    assert "changes" not in project.materialize(after)["attributes"].metadata


def test_stage_records_the_changed_prompt_of_a_stage_that_it_needs(project: RecipeHarness) -> None:
    before, after = project.recipe_file(), project.recipe_file(stage1="Tell it.")
    project.materialize(before)
    graph = build_definitions(project.settings(after)).resolve_asset_graph()
    prompts = graph.get(dg.AssetKey("alignment")).metadata["upstream_prompts"].value
    assert prompts == {"stage1_captions": "Tell it.", "stage2_captions": "Improve: {stage1_captions}"}
    store_checkpoint(project, project.recipe(after))
    made = project.materialize(after)
    assert str(made["alignment"].metadata["changes"].value).splitlines()[2:] == [
        "| prompt of stage1_captions | Describe the video. | Tell it. |"
    ]
    assert "changes" not in made["attributes"].metadata


def test_explanation_of_a_stale_partition_changes_no_status(project: RecipeHarness) -> None:
    before, after = project.recipe_file(), project.recipe_file(attributes="Name both.")
    project.materialize(before)
    settings, instance = project.settings(after), project.instance
    names = Project.of(settings)
    instance.report_runless_asset_event(observation(names, "a", "1"))
    statuses = read_statuses(instance, settings, Root.open(str(project.root)))
    [event] = [one for one in explanations(instance, names, statuses) if one.asset_key == names.key("attributes")]
    instance.report_runless_asset_event(event)
    assert "| prompt | Name the shape and the colour as JSON. | Name both. |" in str(
        event.metadata["stale_because"].value
    )
    assert project.stale(after) == {"attributes"}
    store_checkpoint(project, project.recipe(after))
    project.materialize(after)
    assert project.stale(after) == set()


def store_checkpoint(project: RecipeHarness, recipe: Recipe) -> None:
    captions = {"stage1_captions": short, "stage2_captions": full, **OTHERS}
    rows, columns = rows_of_stages(recipe, CLIPS, captions), {stage.name: stage.columns for stage in recipe.stages}
    metadata = {"quality_rules": str(recipe.quality_rules)}
    write_checkpoint(Root.open(str(project.root)), "a", 1, 0, rows, metadata, columns)


def test_failed_stage_blocks_only_those_that_need_it(tmp_path: Path) -> None:
    project = RecipeHarness(tmp_path)
    recipe = project.recipe_file()
    store_captions(project, stage2=lambda _: None, recipe=project.recipe(recipe), others=OTHERS)
    result = project.run(*FOUR_STAGES, partition="a", recipe=recipe)
    assert not result.success
    assert list(materialized(project, result)) == ["stage1_captions", "attributes"]
    assert not checks(project, result, "stage2_captions")["failed_fraction"].passed
    assert checks(project, result, "alignment") == {}
    assert checks(project, result, "attributes")["rows_complete"].passed
