"""Tests that kill exports repeatedly, and examine the files after each kill and after the last export."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.dataset_shard import export_shard
from caption_assets.export.index import INDEX, ExportIndex, find_index, shard_folder
from caption_assets.store.root import Root
from tests.captioning.harness import Harness
from tests.stages import GENERAL
from tests.videos import moving_video

SHARD = "a"
CLIPS = 8
WINDOWS = 2 * CLIPS
LINES = ExportConfig(Format.JSONL, file_bytes=1 << 30, graph=GENERAL)
"""The earlier export, which the killed ones replace."""


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a captioned shard and its earlier export. The windows of every other clip begin at keyframes."""
    harness = Harness(tmp_path_factory.mktemp("captioned"))
    clips = harness.folder / "shards" / SHARD
    clips.mkdir(parents=True)
    for number in range(CLIPS):
        groups = {"g": "24"} if number % 2 else {}
        size = 96 + 4 * number, 64
        video = moving_video(48, size=size, options={"preset": "ultrafast", "sc_threshold": "0", **groups})
        (clips / f"clip-{number}.mp4").write_bytes(video)
    harness.probe(SHARD)
    assert not harness.run(SHARD).failures
    export_shard(harness.root, harness.source, SHARD, LINES)
    return harness.folder


class RepeatedExports:
    """Successive exports of one shard, each in its own process, on a series of roots."""

    def __init__(self, captioned: Path, folder: Path) -> None:
        self._captioned = captioned
        self._folder = folder
        self._roots = 0
        self.kills = 0
        self.seconds = 0.0
        """Duration of the last export, from its begin."""
        self.new_root()

    def new_root(self) -> None:
        """Start with the captioned shard and its earlier export."""
        self._roots += 1
        path = self._folder / f"root-{self._roots}"
        shutil.copytree(self._captioned / "root", path)
        self.root = Root.open(str(path))

    def run(self, killed_after: float | None = None) -> bool:
        """Export once, and kill the export ``killed_after`` seconds after its begin; returns whether it completed."""
        names = (self.root.url, str(self._captioned / "shards"), SHARD)
        command = [sys.executable, "-m", "tests.export.export_process", *names]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begin\n"
            start = time.monotonic()
            try:
                code = process.wait(killed_after)
            except subprocess.TimeoutExpired:
                workers = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.wait()
                self.kills += 1
                _, alive = psutil.wait_procs(workers, timeout=60)
                assert alive == []
                return False
        self.seconds = time.monotonic() - start
        assert code == 0
        return True

    @property
    def files(self) -> dict[str, str]:
        """Name and hash of each file in the shard's folder, also of those that are hidden."""
        folder = Path(self.root.full(shard_folder(SHARD)))
        return {str(path.relative_to(folder)): _hash(path) for path in folder.rglob("*") if path.is_file()}

    def index(self) -> ExportIndex:
        """The shard's index. Every file that it names exists, with its size, and once."""
        index = find_index(self.root, SHARD)
        assert index is not None
        folder = Path(self.root.full(shard_folder(SHARD)))
        sizes = {file.name: (folder / file.name).stat().st_size for file in index.files}
        assert [(file.name, file.bytes) for file in index.files] == list(sizes.items())
        return index

    def assert_whole(self) -> None:
        """Check that the folder has the files of the index and no other, with each window once."""
        index = self.index()
        names = [file.name for file in index.files]
        assert self.files.keys() == {INDEX, *names}
        suffixes = [Path(name).suffix for name in names]
        assert (suffixes.count(".mp4"), suffixes.count(".txt")) == (WINDOWS, WINDOWS)
        [lines] = [name for name in names if name.endswith(".json")]
        records = [json.loads(line) for line in self.root.read(f"{shard_folder(SHARD)}/{lines}").splitlines()]
        windows = [(record["clip_key"], record["window_index"]) for record in records]
        assert len(windows) == len(set(windows)) == index.windows == WINDOWS


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.nightly)])
def test_killed_exports_write_the_same_files(captioned: Path, tmp_path: Path, kills: int) -> None:
    exports = RepeatedExports(captioned, tmp_path)
    assert exports.run()
    exports.assert_whole()
    expected, duration = exports.files, exports.seconds
    moments = random.Random(kills)
    exports.new_root()
    while exports.kills < kills:
        if exports.run(killed_after=moments.uniform(0.0, 1.1) * duration):
            exports.assert_whole()
            assert exports.files == expected
            exports.new_root()
        exports.index()
    assert exports.run()
    exports.assert_whole()
    assert exports.files == expected
