"""Tests of the project folder that ``caption-assets init`` makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from caption_assets import __version__
from caption_assets.captioning.recipe_file import built_in, read_recipe
from caption_assets.environment import load_env_file
from caption_assets.models.variants import UnknownModel
from caption_assets.scaffold.folder import ScaffoldError, instance_config
from caption_assets.settings import load_settings
from caption_assets.store.failure import StoreError
from tests.cli import run_cli
from tests.scaffold.harness import REPOSITORY, make, run

pytestmark = pytest.mark.fast


def env_of(folder: Path) -> Mapping[str, str | None]:
    return dotenv_values(folder / ".env")


def test_env_has_absolute_paths_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("..") / tmp_path.name / "my captions")
    folder = tmp_path / "my captions"
    assert env_of(folder) == {
        "CAPTION_ROOT": f"{folder}/captions",
        "CAPTION_SOURCE": f"{folder}/shards",
        "CAPTION_RECIPE": f"{folder}/recipe.yaml",
        "DAGSTER_HOME": f"{folder}/.dagster",
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }


def test_options_are_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "new", root="s3://bucket/captions/", source="clips", model="qwen2.5")
    found = env_of(tmp_path / "new")
    assert found["CAPTION_ROOT"] == "s3://bucket/captions"
    assert found["CAPTION_SOURCE"] == f"{tmp_path}/clips"
    assert found["CAPTION_MODEL"] == "qwen2.5"
    assert not (tmp_path / "new" / "shards").exists()


def test_environment_comes_before_defaults_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    for name in ("CAPTION_SOURCE", "CAPTION_RECIPE", "DAGSTER_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAPTION_ROOT", "/elsewhere")
    monkeypatch.setenv("DAGSTER_HOME", "/elsewhere")
    load_env_file(tmp_path)
    assert os.environ["DAGSTER_HOME"] == f"{tmp_path}/.dagster"  # an instance belongs to its project
    settings = load_settings()
    assert (settings.root, settings.source_url) == ("/elsewhere", f"{tmp_path}/shards")


@given(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="'\"\\$}#/"), min_size=1, max_size=12))
def test_any_source_survives_the_env_file(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("project")
    make(folder, source=f"s3://bucket/{name} x")
    assert env_of(folder)["CAPTION_SOURCE"] == f"s3://bucket/{name} x"


@pytest.mark.parametrize("name", ["it's", "${HOME}", "a#b", "a\nb"])
def test_path_that_env_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ScaffoldError, match=r"with a meaning in \.env"):
        make(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_unknown_model_or_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="unknown model 'gpt'"):
        make(tmp_path / "new", model="gpt")
    with pytest.raises(StoreError, match="ftq://host"):
        make(tmp_path / "new", root="ftq://host/captions")
    assert not list(tmp_path.iterdir())


def test_folder_with_files_is_refused_with_their_names(tmp_path: Path) -> None:
    for name in "abcdefg":
        (tmp_path / name).touch()
    message = f"error: {tmp_path} is not empty (a, b, c, d, e and 2 more): give a new folder, or an empty one"
    assert run_cli("init", str(tmp_path)) == message
    assert len(list(tmp_path.iterdir())) == 7


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run_cli("init", str(tmp_path / "file")) == f"error: cannot write {tmp_path}/file: File exists"


def test_fresh_clone_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    make(tmp_path)


@pytest.mark.parametrize(("folder", "cd"), [("new one", ["cd 'new one'"]), (".", [])])
def test_output_names_the_next_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str, cd: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("init", folder) is None
    commands = [line.split("#")[0].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert commands == [*cd, "caption-assets run --all", "caption-assets dev"]


def test_instance_is_the_repositorys_with_its_state_beside_the_file(tmp_path: Path) -> None:
    here, repository = yaml.safe_load(instance_config()), yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    assert set(repository) - set(here) == {"storage", "local_artifact_storage", "compute_logs"}
    assert here == {key: repository[key] for key in here}
    make(tmp_path)
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path / ".dagster"))) as instance:
        instance.add_dynamic_partitions("shards", ["a"])
    assert {path.name for path in (tmp_path / ".dagster").iterdir()} >= {"dagster.yaml", "history"}


def test_recipe_has_the_stages_of_the_general_one(tmp_path: Path) -> None:
    make(tmp_path)
    assert read_recipe(str(tmp_path / "recipe.yaml")).stages == built_in("general").stages
    assert built_in("sample").stages[:2] == built_in("general").stages  # right for the sample model too


def test_commented_stages_of_the_recipe_are_valid(tmp_path: Path) -> None:
    make(tmp_path)
    head, mark, tail = (tmp_path / "recipe.yaml").read_text().partition("# More stages, for other models:\n#\n")
    assert mark
    (tmp_path / "all.yaml").write_text(head + "\n".join(line[1:] for line in tail.splitlines()))
    assert [stage.name for stage in read_recipe(str(tmp_path / "all.yaml")).stages][2:] == ["light", "short"]


def test_workflow_is_yaml_and_installs_this_version(tmp_path: Path) -> None:
    make(tmp_path)
    workflow = yaml.safe_load((tmp_path / ".github" / "workflows" / "captions.yml").read_text())
    steps = [step.get("run", "") for step in workflow["jobs"]["captions"]["steps"]]
    assert f'pip install "caption-assets[cpu]=={__version__}"' in steps


def test_command_elsewhere_names_the_remedy(tmp_path: Path) -> None:
    refused = run(tmp_path, "caption-assets", "removals")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: DAGSTER_HOME is not set, and {tmp_path} has no .env that sets it")
    assert "`caption-assets init DIR`" in refused.stderr
