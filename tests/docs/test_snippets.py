"""Tests that run the snippets of README and docs, in a project folder and with a shard in ``~/shards``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.snippets import REPOSITORY, SNIPPETS, Snippet

pytestmark = pytest.mark.engine

[OWN_CLIPS] = [snippet for snippet in SNIPPETS if snippet.page == "README.md" and "caption-assets init" in snippet.text]
"""The commands that make the project and caption a shard; the other snippets run in its folder."""
OTHERS = [snippet for snippet in SNIPPETS if snippet.reason is None and snippet is not OWN_CLIPS]


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader's home folder."""

    home: Path

    @property
    def folder(self) -> Path:
        """The project folder that ``OWN_CLIPS`` makes."""
        return self.home / "my-captions"

    def run(self, snippet: Snippet, folder: Path) -> None:
        """Run a snippet in a folder; its output is shown if it fails."""
        command = {"sh": ["bash", "-euc"], "python": [sys.executable, "-c"]}[snippet.language]
        caches = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # vLLM's compiled kernels
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "XDG_CACHE_HOME": caches,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
        done = subprocess.run(
            [*command, snippet.text],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Reader:
    """A reader who has captioned a shard with the README's commands."""
    reader = Reader(tmp_path_factory.mktemp("home"))
    shutil.copytree(sample_data / "shards" / "sample-folder", reader.home / "shards" / "my-shard")
    reader.run(OWN_CLIPS, reader.home)
    (reader.folder / ".venv").symlink_to(sys.prefix)
    (reader.folder / "data").symlink_to(reader.home / "captions")  # as after the demo
    return reader


@pytest.mark.parametrize("snippet", OTHERS, ids=str)
def test_snippets_run(snippet: Snippet, reader: Reader) -> None:
    reader.run(snippet, reader.folder)


def test_readme_commands_publish_captions(reader: Reader) -> None:
    for stage in ("stage1_captions", "stage2_captions"):
        assert (reader.home / "captions" / stage / "shard=my-shard" / "captions.parquet").is_file()
