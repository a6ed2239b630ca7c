import re
from pathlib import Path

import pytest

from caption_assets.captioning.stages import TABLE_NAMES
from caption_assets.store.tables import schema_of
from scripts.models_table import models_table
from scripts.settings_table import settings_table

pytestmark = pytest.mark.fast

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


def test_the_table_of_settings_is_that_of_the_code() -> None:
    assert settings_table() in README, "run `python -m scripts.settings_table` and put its output into the README"


def test_the_table_of_models_is_that_of_the_code() -> None:
    assert models_table() in README, "run `python -m scripts.models_table` and put its output into the README"


@pytest.mark.parametrize("table", TABLE_NAMES)
def test_every_column_of_every_table_is_documented(table: str) -> None:
    for column in schema_of(table).names:
        assert f"`{column}`" in README


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z0-9-]+)`", README)):
        assert re.search(rf"^{target}\b.*:", makefile, re.MULTILINE) or re.search(
            rf"^[a-z -]*\b{target}\b.*:", makefile, re.MULTILINE
        ), target


def test_every_file_that_is_linked_exists() -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README):
        assert (REPOSITORY / link).exists(), link
