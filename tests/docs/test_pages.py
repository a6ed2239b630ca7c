"""Tests that the names in README and docs exist in the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import dagster as dg
import pytest
from typer.main import get_command

from caption_assets.captioning.quality import FLAGS
from caption_assets.captioning.recipe_file import built_in
from caption_assets.checks.asset_checks import checks_of
from caption_assets.cli import app
from caption_assets.definitions import build_definitions
from caption_assets.environment import PREFIX
from caption_assets.settings import Settings
from scripts.docs_diagrams import FOLDER, digest
from scripts.docs_hook import GENERATED, MARK
from tests.docs.snippets import PAGES, REPOSITORY, SNIPPETS, Snippet

pytestmark = pytest.mark.fast

SETTINGS = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
MISSPELLED = {"CAPTION_MAX_TOKENS", "CAPTION_MODLE"}
"""Examples of unknown settings."""
TARGETS = set(re.findall(r"^([a-z0-9-]+)(?=.*:)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
ASSETS = {
    "/".join(key.path) for key in build_definitions(Settings(export="jsonl")).resolve_asset_graph().get_all_asset_keys()
}


def test_readme_has_at_most_150_lines() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_settings_exist(page: str) -> None:
    settings = set(re.findall(r"\bCAPTION_[A-Z0-9_]+[A-Z0-9]\b(?!\*|…)", PAGES[page]))
    assert settings - MISSPELLED <= SETTINGS


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    assert set(re.findall(r"`make ([a-z0-9-]+)`", PAGES[page])) <= TARGETS


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist(page: str) -> None:
    for module in set(re.findall(r"python -m ((?:benchmarks|caption_assets|scripts)[\w.]*)", PAGES[page])):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(re.findall(r"`caption-assets ([a-z][a-z-]*)", PAGES[page])) <= commands.keys()


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_commands_in_snippets_exist(snippet: Snippet) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(re.findall(r"^caption-assets ([a-z][a-z-]*)", snippet.text, re.MULTILINE)) <= commands.keys()


@pytest.mark.parametrize("page", PAGES)
def test_files_in_links_exist(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[page]):
        assert (REPOSITORY / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_files_in_text_exist(page: str) -> None:
    files = re.findall(r"`((?:caption_assets|tests|scripts|benchmarks|k8s|docs|requirements)/[\w./-]+)`", PAGES[page])
    for file in files:
        assert (REPOSITORY / file).exists(), file


def test_each_generated_table_is_on_one_page() -> None:
    assert sorted(name for page in PAGES.values() for name in MARK.findall(page)) == sorted(GENERATED)


def test_checks_and_flags_are_documented() -> None:
    documented = set(re.findall(r"^\| `(\w+)`", PAGES["docs/reference/checks.md"], re.MULTILINE))
    graph = built_in("general")
    assert {check.name for stage in graph.stages for check in checks_of(graph, stage)} <= documented
    assert {flag.name for flag in FLAGS} <= documented


@pytest.mark.parametrize("diagram", sorted(FOLDER.glob("*.mmd")), ids=lambda path: path.stem)
def test_diagrams_are_rendered_from_their_source(diagram: Path) -> None:
    assert digest(diagram) in diagram.with_suffix(".svg").read_text(), "run `make diagrams`"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_snippets_have_valid_syntax(snippet: Snippet) -> None:
    if snippet.language == "python":
        compile(snippet.text, str(snippet), "exec")
    else:
        subprocess.run(["bash", "-n"], input=snippet.text, text=True, check=True)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_snippets_select_assets_that_exist(snippet: Snippet) -> None:
    for selection in re.findall(r"--select ([\w,/]+)", snippet.text):
        assert set(selection.split(",")) <= ASSETS


def test_docs_name_the_installed_dagster_version() -> None:
    versions = re.findall(r"--version (1\.\d+\.\d+)", "".join(PAGES.values()))
    assert set(versions) == {dg.__version__}
