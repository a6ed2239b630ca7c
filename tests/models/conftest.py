from pathlib import Path

import pytest

from caption_assets.store.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "root"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
