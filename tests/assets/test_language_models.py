"""Tests of recipes with a language model for stages without video."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from safetensors.numpy import save_file

from caption_assets.captioning.recipe import Recipe
from caption_assets.definitions import build_definitions
from caption_assets.models.mirror import read_weights_manifest
from caption_assets.models.variants import SAMPLE
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, Status, read_captions
from tests.assets.conftest import ProjectHarness
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.language_model import write_language_model
from tests.models.adapters import adapter_files, write_adapter

CAPTION, ENHANCED, SHORT = STAGES = ["stage1_captions", "enhanced", "short"]
SHARD = "sample-folder"
NO_VIDEO_ENGINE = {"engine_args": {"max_model_len": -9}}
"""Settings with which the engine of the video model does not start."""


def write_recipe(folder: Path, model: Path, revision: str) -> dict[str, object]:
    """Write a recipe with two stages of a language model; return the settings of a run."""
    (folder / "mine.yaml").write_text(f"""
stages:
  - name: {CAPTION}
    prompt: >-
      Describe what this video shows: the subjects, how they look and how they move, in the order in which it
      happens. Keep to what can be seen.
  - name: {ENHANCED}
    prompt: "Write more about this: {{{CAPTION}}}"
    video: false
    model: {model}
    revision: {revision}
    max_output_tokens: 24
  - name: {SHORT}
    prompt: "Shorten this: {{{ENHANCED}}}"
    video: false
    model: {model}
    revision: {revision}
    max_output_tokens: 12
""")
    return {"recipe": str(folder / "mine.yaml"), "max_failed_fraction": 1.0}


def write_files(folder: Path) -> Path:
    """Write the files of a language model that no engine can load."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    save_file({"weight": np.zeros(4)}, folder / "model.safetensors")
    return folder


def rows_of(project: ProjectHarness, table: str) -> list[CaptionRow]:
    """The captionable rows of the shard's table."""
    rows = read_captions(Root.open(str(project.root)), table, SHARD)
    return [row for row in rows if row.window_index is not None]


def stale(project: ProjectHarness, **settings: object) -> set[str]:
    """The caption assets that the UI shows as stale for the shard."""
    definitions = build_definitions(Settings(root=str(project.root), **settings))  # type: ignore[arg-type]
    view = AssetGraphView.for_test(definitions, project.instance)
    resolver = CachingStaleStatusResolver(project.instance, view.asset_graph, view)
    return {name for name in STAGES if resolver.get_status(dg.AssetKey(name), SHARD) is not StaleStatus.FRESH}


def materialized(result: dg.ExecuteInProcessResult) -> list[str]:
    return [event.materialization.asset_key.path[-1] for event in result.get_asset_materialization_events()]


@pytest.mark.fast
def test_weights_of_all_models_are_mirrored(project: ProjectHarness, tmp_path: Path) -> None:
    [default] = project.run("model_weights").get_asset_materialization_events()
    settings = write_recipe(tmp_path, write_files(tmp_path / "words"), "v1")
    [event] = project.run("model_weights", **settings).get_asset_materialization_events()  # type: ignore[arg-type]
    root, [language] = Root.open(str(project.root)), Settings(**settings).language_models  # type: ignore[arg-type]
    files = sum(len(read_weights_manifest(root, model).files) for model in (SAMPLE, language))
    assert event.materialization.metadata["files"] == dg.MetadataValue.int(files)
    assert event.materialization.metadata["language_models"].value == "local/words @ v1"
    versions = [(one.materialization.tags or {})["dagster/data_version"] for one in (default, event)]
    assert versions[0] == versions[1], "a language model makes the stages of the video model stale"


@pytest.mark.fast
def test_adapter_as_language_model_is_an_error(project: ProjectHarness, tmp_path: Path) -> None:
    settings = write_recipe(tmp_path, write_adapter(tmp_path / "mine", adapter_files()), "v1")
    assert "contains a LoRA adapter, not a model: merge it into the model that it was trained on" in project.failure(
        "model_weights", **settings
    )


@pytest.mark.fast
def test_stages_of_a_language_model_depend_on_its_weights(tmp_path: Path) -> None:
    settings = Settings(**write_recipe(tmp_path, tmp_path / "words", "v1"))  # type: ignore[arg-type]
    graph = build_definitions(settings).resolve_asset_graph()
    parents = {name: {key.path[-1] for key in graph.get(dg.AssetKey(name)).parent_keys} for name in STAGES}
    assert parents[CAPTION] == {"clip_manifest", "model_weights"}
    assert parents[ENHANCED] == {CAPTION, "model_weights"}
    assert parents[SHORT] == {ENHANCED, "model_weights"}


@pytest.mark.fast
def test_models_answer_one_after_the_other_in_a_run_over_several_shards(
    project: ProjectHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(model: Path, recipe: Recipe, *_: object) -> AbstractAsyncContextManager[FakeEngine]:
        return start_fake_engine(FakeEngine(), lambda: started.append(recipe.variant.hub_id))

    monkeypatch.setattr("caption_assets.resources.start_engine", start)
    settings = write_recipe(tmp_path, write_files(tmp_path / "words"), "v1") | {"max_unreadable_fraction": 1.0}
    project.run("shard_index", "model_weights", **settings)  # type: ignore[arg-type]
    shards = {"partitions": ("sample-folder", "sample-tar")}
    assert project.run("clip_manifest", **shards, **settings).success  # type: ignore[arg-type]
    (project.root / "clip_manifest" / "shard=sample-tar" / "manifest.parquet").unlink()
    failed = project.run(*STAGES, **shards, **settings)  # type: ignore[arg-type]
    assert not failed.success
    assert started == [SAMPLE.hub_id, "local/words"]
    assert not (project.root / ENHANCED / "shard=sample-tar").exists()
    assert {event.partition for event in materializations(project, ENHANCED)} == {SHARD}
    assert stale(project, **settings) == set()


def materializations(project: ProjectHarness, asset: str) -> list[dg.AssetMaterialization]:
    records = project.instance.fetch_materializations(dg.AssetKey(asset), limit=99).records
    return [record.asset_materialization for record in records if record.asset_materialization]


@pytest.mark.engine
def test_language_model_answers_its_stages_from_stored_captions(
    project: ProjectHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # in GiB; by default most of the memory
    words = tmp_path / "words"
    write_language_model(words, context=16)
    settings = write_recipe(tmp_path, words, "v1")
    project.run("shard_index")

    result = project.run("model_weights", "clip_manifest", *STAGES, partition=SHARD, **settings)  # type: ignore[arg-type]
    assert not result.success  # the context of the language model is too short
    assert sorted(materialized(result)) == ["clip_manifest", "model_weights", CAPTION]
    captions = rows_of(project, CAPTION)
    assert {(row.status, row.model, row.revision) for row in captions} == {(Status.OK, SAMPLE.hub_id, SAMPLE.revision)}
    assert not Root.open(str(project.root)).exists(ENHANCED)

    write_language_model(words)
    settings = write_recipe(tmp_path, words, "v2") | NO_VIDEO_ENGINE
    assert project.run("model_weights", **settings).success  # type: ignore[arg-type]
    result = project.run(*STAGES, partition=SHARD, **settings)  # type: ignore[arg-type]
    assert result.success
    assert materialized(result) == STAGES
    assert rows_of(project, CAPTION) == captions
    enhanced, short = rows_of(project, ENHANCED), rows_of(project, SHORT)
    assert {(row.model, row.revision) for row in (*enhanced, *short)} == {("local/words", "v2")}
    assert sum(row.status is Status.OK for row in enhanced) > len(captions) / 2
    assert {row.frame_indices for row in enhanced} == {None}
    for row, caption in zip(enhanced, captions, strict=True):
        assert row.upstream_fingerprints == {CAPTION: caption.fingerprint}
    assert stale(project, **settings) == set()

    settings = write_recipe(tmp_path, words, "v3") | NO_VIDEO_ENGINE
    assert project.run("model_weights", **settings).success  # type: ignore[arg-type]
    assert stale(project, **settings) == {ENHANCED, SHORT}
