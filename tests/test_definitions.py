import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.utils import DISALLOWED_NAMES
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import deserialize_value, serialize_value

from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.stages import NAME, RESERVED_NAMES
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import ProjectClash, claim
from caption_assets.definitions import build_definitions, load_definitions
from caption_assets.resources import Storage, build_resources, build_storage
from caption_assets.settings import Settings, load_settings
from caption_assets.store.access import Access
from tests.recipes import FOUR_STAGES, write_recipe

pytestmark = pytest.mark.fast


def graph(**settings: object) -> Any:
    definitions = build_definitions(Settings(**{"recipe": "general", **settings}))  # type: ignore[arg-type]
    return definitions.get_repository_def().asset_graph


def test_names_that_dagster_refuses_are_refused_for_stages() -> None:
    assert {name for name in DISALLOWED_NAMES if NAME.fullmatch(name)} <= RESERVED_NAMES


def test_asset_graph_matches_the_design() -> None:
    keys = {
        key.to_user_string(): {p.to_user_string() for p in graph().get(key).parent_keys}
        for key in graph().get_all_asset_keys()
    }
    assert keys == {
        "shards": {"shard_index"},
        "shard_index": set(),
        "model_weights": set(),
        "clip_manifest": {"shards"},
        "stage1_captions": {"clip_manifest", "model_weights"},
        "stage2_captions": {"stage1_captions"},
    }


def test_all_stages_are_one_step_that_can_be_subset() -> None:
    found = graph(recipe="sample")
    steps = [found.get(dg.AssetKey(stage.name)).assets_def for stage in built_in("sample").stages]
    assert {step.node_def.name for step in steps} == {"captions"}
    assert all(step.can_subset for step in steps)


def test_recipe_file_makes_the_assets(tmp_path: Path) -> None:
    found = graph(recipe=str(write_recipe(tmp_path)))
    stages = {key.to_user_string(): found.get(key) for key in found.get_all_asset_keys() if key.path[-1] in FOUR_STAGES}
    assert {name: {key.to_user_string() for key in node.parent_keys} for name, node in stages.items()} == {
        "stage1_captions": {"clip_manifest", "model_weights"},
        "stage2_captions": {"stage1_captions"},
        "attributes": {"clip_manifest", "model_weights"},
        "alignment": {"stage2_captions"},
    }
    assert {node.group_name for node in stages.values()} == {"captions"}
    assert {name: node.description for name, node in stages.items()} == {
        "stage1_captions": "A text for each window, from the video: Describe the video.",
        "stage2_captions": "A text for each window, from the video and stage1_captions: Improve: {stage1_captions}",
        "attributes": "JSON for each window, from the video: Name the shape and the colour as JSON.",
        "alignment": "One of yes, no for each window, from the video and stage2_captions: Is it right? "
        "{stage2_captions}",
    }
    columns = [column.name for column in stages["alignment"].metadata["dagster/column_schema"].schema.columns]
    assert columns[-5:] == ["upstream_fingerprints", "choice", "probability", "probabilities", "score"]


def test_code_versions_of_the_default_recipe_are_those_of_earlier_releases() -> None:
    found = graph(model="qwen2.5")
    versions = {stage: found.get(dg.AssetKey(stage)).code_version for stage in ("stage1_captions", "stage2_captions")}
    assert versions == {"stage1_captions": "dcbb273bd2ce1360", "stage2_captions": "711c6f81a53aecc3"}


def test_prompt_changes_the_code_versions_of_its_stage_and_those_that_need_it(tmp_path: Path) -> None:
    before = graph(recipe=str(write_recipe(tmp_path)))
    after = graph(recipe=str(write_recipe(tmp_path / "new", stage2="Again: {stage1_captions}")))
    changed = {
        key.to_user_string()
        for key in before.get_all_asset_keys()
        if before.get(key).code_version != after.get(key).code_version
    }
    assert changed == {"stage2_captions", "alignment"}


def test_definitions_load_without_engine_plots_or_kubernetes_client() -> None:
    code = (
        "import sys, caption_assets.definitions; "
        "print(*({'duckdb', 'kubernetes', 'matplotlib', 'tokenizers', 'torch', 'torchvision', 'transformers', 'vllm'} "
        "& sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@pytest.mark.parametrize("executor", ["in_process", "multiprocess", "k8s"])
def test_setting_selects_the_executor(executor: str) -> None:
    selected = build_definitions(Settings(executor=executor)).executor
    assert isinstance(selected, dg.ExecutorDefinition)
    assert selected.name == executor


def test_storage_uses_the_settings() -> None:
    storage = build_resources(Settings(source="s3://bucket/shards", s3_path_style=True))["storage"]
    assert isinstance(storage, Storage)
    assert storage.source().access == Access(path_style=True)


def test_definitions_are_serializable_for_the_ui() -> None:
    repository = build_definitions(Settings()).get_repository_def()
    snap: Any = deserialize_value(serialize_value(RepositorySnap.from_def(repository)), RepositorySnap)
    assert {instigator.name for instigator in (*snap.schedules, *snap.sensors)} == {
        "backfill",
        "dead_runs",
        "new_shards",
        "overdue_shards",
        "run_failures",
        "status_report",
    }


def test_assets_and_checks_have_descriptions_and_assets_groups() -> None:
    assets = graph(export="jsonl")
    nodes = {key.to_user_string(): assets.get(key) for key in assets.get_all_asset_keys()}
    assert [name for name, node in nodes.items() if not node.description] == []
    assert [name for name, node in nodes.items() if node.group_name == "default"] == []
    checks = [assets.get_check_spec(key) for key in assets.asset_check_keys]
    assert [check.name for check in checks if not check.description] == []


def test_only_sensors_that_start_no_run_are_on_by_default() -> None:
    sensors = {sensor.name: sensor.default_status for sensor in build_definitions(Settings()).sensors or ()}
    running = [name for name, status in sensors.items() if status is dg.DefaultSensorStatus.RUNNING]
    assert sorted(running) == ["dead_runs", "status_report"]


def test_dataset_asset_exists_only_if_configured() -> None:
    assert dg.AssetKey("captioned_dataset") not in graph().get_all_asset_keys()
    assert dg.AssetKey("captioned_dataset") in graph(export="jsonl").get_all_asset_keys()


def test_project_name_prefixes_keys_and_partitions() -> None:
    plain, north = graph(), graph(project="north")
    assert {("north", *key.path) for key in plain.get_all_asset_keys()} == {
        tuple(key.path) for key in north.get_all_asset_keys()
    }
    names = [
        {found.get(key).partitions_def.name for key in found.get_all_asset_keys() if found.get(key).is_partitioned}
        for found in (plain, north)
    ]
    assert names == [{"shards"}, {"north/shards"}]  # instances of releases without projects have the first


def test_definitions_with_another_root_are_rejected_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path / "a"))
    load_definitions()
    with dg.DagsterInstance.get() as instance:
        claim(instance, Project(), build_storage(load_settings()))
    load_definitions()
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path / "b"))
    with pytest.raises(ProjectClash, match="CAPTION_PROJECT to a name that no other project of this instance has"):
        load_definitions()
    monkeypatch.setenv("CAPTION_PROJECT", "b")
    load_definitions()


def test_loading_creates_no_dagster_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    load_definitions()
    assert not list(tmp_path.iterdir())
