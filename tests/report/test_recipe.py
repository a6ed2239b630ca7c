from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.captioning.recipe_file import BUILT_IN, built_in
from tests.captioning.language_model import write_language_model
from tests.cli import run_cli

OTHER_MODEL = "qwen2.5"
"""A model whose files are not on this machine."""
MINE = """\
description: Mine.
stages:
  - name: look
    prompt: Describe this video.
  - name: fits
    prompt: "Is this true of the video? {look}"
    output: {choices: [yes, no], score: yes}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    return file


@pytest.fixture
def without_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAPTION_MODEL", OTHER_MODEL)
    monkeypatch.setenv("CAPTION_CACHE", str(tmp_path / "cache"))


@pytest.mark.engine
def test_recipe_is_shown_with_rendered_prompts_and_tokens(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("recipe", "show", str(mine)) is None
    shown = capsys.readouterr().out
    assert shown.startswith("mine: Mine.\n\n  video ▶ look\n  video + look ▶ fits\n\n")
    assert "A clip's own prompt replaces that of look." in shown
    assert "<|vision_start|><|video_pad|><|vision_end|>Describe this video.<|im_end|>" in shown
    assert "output    one of yes, no; score: the probability of yes" in shown
    assert "tokens + video + look\n" in shown


@pytest.mark.fast
@pytest.mark.usefixtures("without_model")
def test_recipe_is_shown_without_the_model(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("recipe", "show", str(mine)) is None
    shown = capsys.readouterr().out
    assert "prompt    as in the recipe, without its tokens: the files of Qwen/Qwen2.5-VL-7B-Instruct are" in shown
    assert "\nIs this true of the video? {look}\n" in shown


@pytest.mark.fast
@pytest.mark.usefixtures("without_model")
def test_recipe_of_the_settings_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("recipe", "show") is None
    assert capsys.readouterr().out.startswith(f"general: {built_in('general').description}\n")


@pytest.mark.engine
def test_valid_recipe_passes_the_check(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("recipe", "check", str(mine)) is None
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "mine: 2 stages (look, fits)"
    assert all(line.startswith("ok ") for line in others)
    assert "ok       choices of fits: one token each" in others


@pytest.mark.engine
@pytest.mark.usefixtures("without_model")
@pytest.mark.parametrize("name", BUILT_IN)
def test_schemas_of_built_in_recipes_are_supported(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("recipe", "check", name) is None
    assert f"skipped  prompt of {built_in(name).stages[0].name}: the files of Qwen" in capsys.readouterr().out


@pytest.mark.engine
def test_prompt_for_a_language_model_is_rendered_by_it(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_language_model(tmp_path / "words")
    own = f"  - {{name: short, prompt: 'Shorten: {{look}}', video: false, model: {tmp_path}/words, revision: v1}}\n"
    mine.write_text(MINE + own)
    assert run_cli("recipe", "show", str(mine)) is None
    shown = capsys.readouterr().out.partition("── short")[2]
    assert "model     local/words\n" in shown
    assert "<|im_start|>user\nShorten: {look}<|im_end|>" in shown


@pytest.mark.engine
def test_split_choice_fails_the_check(mine: Path) -> None:
    mine.write_text(MINE.replace("no]", "perhaps]"))
    error = str(run_cli("recipe", "check", str(mine)))
    assert error.startswith(f"error: {mine}:7: fits: the choice 'perhaps' is ")
    assert "must be one: use a shorter or more common word" in error


@pytest.mark.engine
def test_unsupported_json_schema_fails_the_check(mine: Path) -> None:
    mine.write_text(MINE.replace("{choices: [yes, no], score: yes}", "{json: {type: string, pattern: '(?=a)b('}}"))
    error = str(run_cli("recipe", "check", str(mine)))
    assert error.startswith(f"error: {mine}:7: vLLM's structured outputs do not support the JSON Schema of fits (")


@pytest.mark.fast
@pytest.mark.parametrize("command", ["show", "check"])
def test_invalid_file_is_an_error_with_its_line(command: str, mine: Path) -> None:
    mine.write_text(MINE.replace("{look}", "{looks}"))
    assert str(run_cli("recipe", command, str(mine))).startswith(f"error: {mine}:6: the slot {{looks}} names no stage")
