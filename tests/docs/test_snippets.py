"""Tests that run the snippets of README and docs, in the repository's folder and with a shard in ``~/shards``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.snippets import REPOSITORY, SNIPPETS, Snippet

pytestmark = pytest.mark.engine

[OWN_CLIPS] = [snippet for snippet in SNIPPETS if snippet.page == "README.md" and "--partition" in snippet.text]
"""The commands that caption a shard; the other snippets read their output."""
OTHERS = [snippet for snippet in SNIPPETS if snippet.reason is None and snippet.text != OWN_CLIPS.text]


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader's home folder and clone of the repository."""

    home: Path
    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that the commands of ``OWN_CLIPS`` set."""
        return {
            "DAGSTER_HOME": str(self.folder),
            "CAPTION_SOURCE": str(self.home / "shards"),
            "CAPTION_ROOT": str(self.home / "captions"),
        }

    def run(self, snippet: Snippet, variables: Mapping[str, str]) -> None:
        """Run a snippet; its output is shown if it fails."""
        command = {"sh": ["bash", "-euc"], "python": [sys.executable, "-c"]}[snippet.language]
        caches = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # vLLM's compiled kernels
        environment = {
            **os.environ,
            **variables,
            "HOME": str(self.home),
            "XDG_CACHE_HOME": caches,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
        done = subprocess.run(
            [*command, snippet.text],
            cwd=self.folder,
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
    reader = Reader(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("repository"))
    shutil.copytree(sample_data / "shards" / "sample-folder", reader.home / "shards" / "my-shard")
    shutil.copy(REPOSITORY / "dagster.yaml", reader.folder)
    (reader.folder / ".venv").symlink_to(sys.prefix)
    (reader.folder / "data").symlink_to(reader.home / "captions")  # as after the demo
    reader.run(OWN_CLIPS, {})
    return reader


@pytest.mark.parametrize("snippet", OTHERS, ids=str)
def test_snippets_run(snippet: Snippet, reader: Reader) -> None:
    reader.run(snippet, reader.environment)


def test_readme_commands_publish_captions(reader: Reader) -> None:
    for stage in ("stage1_captions", "stage2_captions"):
        assert (reader.home / "captions" / stage / "shard=my-shard" / "captions.parquet").is_file()
