"""The tokenizer of the bundled model."""

from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.sample.tokenizer import build_tokenizer

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a newly built tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja"])
def test_tokenizer_of_the_recipe_is_the_bundled_one(folder: Path, model_folder: Path, file: str) -> None:
    assert (folder / file).read_bytes() == (model_folder / file).read_bytes()


@pytest.mark.parametrize("word", ["yes", "no"])
def test_choices_of_the_recipe_are_one_token_each(word: str) -> None:
    assert len(build_tokenizer().encode(word)) == 1
