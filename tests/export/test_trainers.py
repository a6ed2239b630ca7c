"""Datasets of real clips, read by the rules of the trainers' loaders: which files they take, and how they join paths.

The rules are those of the sources named in tests/export/formats. ``scripts/trainers.py`` runs the loaders themselves,
as far as they can be installed. These tests belong to no lane: windows are cut in worker processes.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest

from caption_assets.export.config import CutConfig, Format
from caption_assets.export.dataset_shard import export_shard
from caption_assets.export.index import DATASET
from caption_assets.export.merged import merge_dataset
from caption_assets.store.root import Root
from tests.docs.snippets import SNIPPETS
from tests.export.shards import LINES
from tests.export.trainer_data import FRAMES, TEXTS, captioned_root

Read = Callable[[Path], dict[str, str]]
"""Returns the text of each video file that a trainer finds in the dataset's folder."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return captioned_root(tmp_path_factory.mktemp("home") / "captions")


def export_as(root: Root, format: Format) -> Path:
    """Export all shards, and return the dataset's folder."""
    folder = Path(root.address(DATASET))
    how = replace(
        LINES,
        format=format,
        cut=CutConfig(format.default_cut),
        folder=str(folder) if format.has_full_paths else None,
    )
    for shard in ("one", "two"):
        export_shard(root, root, shard, how)
    merge_dataset(root, how)
    return folder


def read_pairs(folder: Path) -> dict[str, str]:
    """musubi-tuner and diffusion-pipe: the files of a folder, without those below it; a folder for each shard."""
    found = {}
    for shard in (folder / "data").iterdir():
        for file in shard.glob("*"):
            if file.suffix not in (".txt", ".npz", ".json", ".parquet", ".bak", ".db"):
                found[str(file)] = file.with_suffix(".txt").read_text().strip()
        assert {str(file) for file in shard.glob("*.mp4")} == {file for file in found if file.startswith(str(shard))}
    return found


def read_all_pairs(folder: Path) -> dict[str, str]:
    """ai-toolkit and SimpleTuner: all files below a folder; SimpleTuner takes each line for a caption."""
    files = glob.glob(f"{folder}/**/*.mp4", recursive=True)
    texts = {file: Path(os.path.splitext(file)[0] + ".txt").read_text() for file in files}
    assert all(len(text.split("\n")) == 1 for text in texts.values())
    return texts


def read_lines(name: str, video: str, text: str) -> Read:
    def read(folder: Path) -> dict[str, str]:
        records = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        return {str(folder / record[video]): record[text] for record in records}

    return read


def read_csv(name: str, video: str, text: str) -> Read:
    def read(folder: Path) -> dict[str, str]:
        with (folder / name).open() as file:
            return {os.path.join(folder, row[video]): row[text] for row in csv.DictReader(file)}

    return read


def read_fastvideo(folder: Path) -> dict[str, str]:
    records = json.loads((folder / "videos2caption.json").read_text())
    return {os.path.join(folder, "videos", record["path"]): record["cap"] for record in records}


def read_chat(folder: Path) -> dict[str, str]:
    [info] = json.loads((folder / "dataset_info.json").read_text()).values()
    found = {}
    for line in (folder / info["file_name"]).read_text().splitlines():
        record = json.loads(line)
        question, answer = record[info["columns"]["messages"]]
        assert question["content"].count("<video>") == len(record["videos"]) == 1
        found[record["videos"][0]] = answer["content"]
    return found


def read_conversations(folder: Path) -> dict[str, str]:
    records = [json.loads(line) for line in (folder / "conversations.jsonl").read_text().splitlines()]
    return {str((folder / one["video"]).resolve()): one["conversations"][1]["value"] for one in records}


@pytest.mark.parametrize(
    ("format", "read"),
    [
        (Format.LTX, read_lines("ltx.jsonl", "video", "caption")),
        (Format.MUSUBI, read_lines("musubi.jsonl", "video_path", "caption")),
        (Format.VIDEOX_FUN, read_csv("videox-fun.csv", "file_path", "text")),
        (Format.OPEN_SORA, read_csv("open-sora.csv", "path", "text")),
        (Format.FASTVIDEO, read_fastvideo),
        (Format.CHAT, read_chat),
        (Format.CONVERSATIONS, read_conversations),
        (Format.PAIRS, read_pairs),
        (Format.PAIRS, read_all_pairs),
    ],
)
def test_trainer_finds_each_window_with_its_text(root: Root, format: Format, read: Read) -> None:
    found = read(export_as(root, format))
    assert sorted(found.values()) == sorted(TEXTS)
    assert {frames_of(path) for path in found} == {FRAMES}


def test_cosmos_finds_the_frames_of_each_window_in_the_clips_and_nothing_of_earlier_formats(root: Root) -> None:
    folder = export_as(root, Format.COSMOS)
    left = {file.suffix for file in folder.rglob("*.*")} | {file.name for file in folder.glob("*")}
    assert left == {".jsonl", ".json", ".mp4", ".md", "README.md", "data", "cosmos.jsonl"}
    assert [file.name for file in folder.rglob("*.json")] == ["index.json"] * 2
    texts = []
    for line in (folder / "cosmos.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert frames_of(str(folder / record["vision_path"])) == record["nb_frames"] == 2 * FRAMES
        for number, window in enumerate(record["t2w_windows"]):
            assert (window["start_frame"], window["end_frame"]) == (FRAMES * number, FRAMES * (number + 1) - 1)
            texts.append(window["caption"])
    assert sorted(texts) == sorted(TEXTS)


def test_loader_of_the_docs_iterates_real_frames_with_their_captions(
    root: Root, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = Path(root.path).parent
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "cache")
    export_as(root, Format.PAIRS)
    [snippet] = [one for one in SNIPPETS if one.page == "docs/how-to/training.md" and "DataLoader" in one.text]
    exec(snippet.text, {"__name__": "__main__"})
    printed = re.findall(r"^2 windows; the first: \(8, 48, 64, 3\) (.*)$", capfd.readouterr().out, re.MULTILINE)
    assert len(printed) == 2
    assert set(printed) <= set(TEXTS)


def frames_of(path: str) -> int:
    with av.open(path) as file:
        return sum(1 for _ in file.decode(video=0))
