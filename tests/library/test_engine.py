"""Tests of the command and of the Python API on a real engine, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.videos import moving_video

pytestmark = pytest.mark.engine

SCRIPT = """
from caption_assets import Captioner
print("main")
with Captioner() as captioner:
    print([(row.window, row.stage) for row in captioner.caption({clip!r}, stage="stage1_captions")])
    print(len(list(captioner.caption([{clip!r}, "/nowhere.mp4"]))))
"""


def run(arguments: list[str], folder: Path, script: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder, which is also that of temporary files."""
    folder.mkdir()
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=script,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TMPDIR": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_script_from_stdin_captions_without_a_main_guard(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    clip.write_bytes(moving_video(48))
    done = run(["-"], tmp_path / "empty", SCRIPT.format(clip=str(clip)))
    assert done.stdout.splitlines() == ["main", "[(0, 'stage1_captions')]", "6"], done.stderr
    assert "SampleModelWarning: the sample model knows only its toy world" in done.stderr
    # torch has a cache there, which all its programs share.
    assert [path.name for path in (tmp_path / "empty").iterdir() if not path.name.startswith("torchinductor_")] == []


def test_command_captions_odd_files(tmp_path: Path) -> None:
    pictures = moving_video(30)
    files = {
        "a.mp4": pictures,
        "cut.mp4": pictures[: len(pictures) // 2],
        "hevc.mkv": moving_video(30, encoder="libx265", container="matroska"),
        "notes.mp4": b"not a video",
        "vp9.webm": moving_video(30, encoder="libvpx-vp9", container="webm"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    code = "from caption_assets.cli import main; main()"
    paths = [str(tmp_path / name) for name in files]
    done = run(["-c", code, "caption", "--json", "--stage", "stage1_captions", *paths], tmp_path / "empty")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1, done.stderr
    assert [(Path(row["clip"]).name, row["status"]) for row in rows] == [
        ("a.mp4", "ok"),
        ("cut.mp4", "failed"),
        ("hevc.mkv", "ok"),
        ("notes.mp4", "failed"),
        ("vp9.webm", "ok"),
    ]
    assert all(row["caption"] if row["status"] == "ok" else row["error"] for row in rows)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("warning: the sample model")
    assert lines[1].startswith("starting the engine for ")
    assert lines[2].startswith("the engine is ready after ")
    assert lines[-1].startswith("5 files, 3 windows in ")
    assert len(lines) <= 6, done.stderr
    assert list((tmp_path / "empty").iterdir()) == []
