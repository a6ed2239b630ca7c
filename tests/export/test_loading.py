"""Loading of the dataset with the ``datasets`` library, by its card.

These tests belong to no lane, so that only ``make test`` runs them: importing the library takes seconds.
"""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest

from caption_assets.export.config import ExportConfig
from caption_assets.export.dataset_shard import export_shard
from caption_assets.export.index import DATASET
from caption_assets.store.root import Root
from tests.docs.snippets import SNIPPETS
from tests.export.shards import LINES, TARS, clip, export, publish_captioned
from tests.report.windows import FOUR, publish_four
from tests.videos import gray, video

LOADERS = [one for one in SNIPPETS if one.page == "docs/how-to/export.md" and "DataLoader" in one.text]
"""The loaders of the docs: for webdataset and for JSON lines."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """Two shards with clips in two formats. In the first shard every optional column is empty."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    root = Root.open(str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    pictures = [gray(40 * index, (64, 48)) for index in range(4)]
    publish_captioned(root, clip(root, "a.b/car.mp4", video(pictures), windows=2), shard="__first")
    clips = (
        clip(root, "van.webm", video(pictures, encoder="libvpx", container="webm"), prompt="Count.", extra='{"a": 1}'),
        clip(root, "bus.mp4", video(pictures), width=64, height=48, clip_fps=25.0, has_audio=False),
    )
    publish_captioned(root, *clips, shard="second.part", flags=("meta",))
    return root


def load(root: Root, how: ExportConfig, *, streaming: bool) -> Any:
    for shard in ("__first", "second.part"):
        export(root, how, shard)
    return load_exported(root, how, streaming=streaming)


def load_exported(root: Root, how: ExportConfig, *, streaming: bool) -> Any:
    from datasets import Video, load_dataset

    dataset = load_dataset(
        root.address(DATASET), split="train", streaming=streaming, cache_dir=str(Path(root.path, "cache"))
    )
    return dataset.cast_column("mp4", Video(decode=False)) if how is TARS else dataset


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_loads_as_clips_with_their_windows(root: Root, streaming: bool) -> None:
    found = list(load(root, TARS, streaming=streaming))
    assert [(one["json"]["shard"], one["json"]["clip_key"], len(one["json"]["windows"])) for one in found] == [
        ("__first", "a.b/car.mp4", 2),
        ("second.part", "van.webm", 1),
        ("second.part", "bus.mp4", 1),
    ]
    assert found[0]["json"]["windows"][1]["stage2_caption"] == "Stage 2 of a.b/car.mp4, window 1."
    assert [one["json"]["prompt"] for one in found] == [None, "Count.", None]
    assert found[1]["json"]["windows"][0]["stage2_flags"] == ["meta"]
    for one in found:
        with av.open(BytesIO(one["mp4"]["bytes"]), "r") as video:
            assert len(list(video.decode(video=0))) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_loads_as_windows(root: Root, streaming: bool) -> None:
    found = list(load(root, LINES, streaming=streaming))
    assert [(one["shard"], one["clip_key"], one["window_index"], one["stage1_flags"]) for one in found] == [
        ("__first", "a.b/car.mp4", 0, []),
        ("__first", "a.b/car.mp4", 1, []),
        ("second.part", "van.webm", 0, ["meta"]),
        ("second.part", "bus.mp4", 0, ["meta"]),
    ]
    assert found[3]["clip_fps"] == 25.0
    assert len(root.read(found[3]["uri"])) == found[3]["bytes"]


@pytest.mark.parametrize("how", [TARS, LINES])
def test_columns_of_all_outputs_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    root = Root.open(str(tmp_path / "root"))
    pictures = [gray(40 * index, (64, 48)) for index in range(4)]
    publish_four(root, clip(root, "car.mp4", video(pictures)))
    export(root, replace(how, graph=FOUR))
    [found] = load_exported(root, how, streaming=False)
    window = found["json"]["windows"][0] if how is TARS else found
    assert window["attributes_fields"] == {"subjects": ["a car", "a man"], "camera": {"motion": "static", "shots": 1}}
    assert [window[f"alignment_{name}"] for name in ("choice", "probability", "score")] == ["yes", 0.9, 0.9]


@pytest.mark.parametrize("shard", ["00000", "2024-01-01", "1e5", "true"])
@pytest.mark.parametrize("how", [TARS, LINES])
def test_shard_is_a_string_whatever_its_name(root: Root, how: ExportConfig, shard: str) -> None:
    publish_captioned(root, clip(root, "car.mp4", video([gray(40, (64, 48))] * 4)), shard=shard)
    export(root, how, shard)
    [found] = load_exported(root, how, streaming=False)
    # Arrow infers a time from the JSON of a column in which all texts are dates.
    is_time = how is LINES and shard == "2024-01-01"
    assert (found["json"] if how is TARS else found)["shard"] == (f"{shard} 00:00:00" if is_time else shard)


@pytest.mark.parametrize("how", [TARS, LINES], ids=["webdataset", "jsonl"])
def test_training_loader_of_the_docs_decodes_the_windows(
    how: ExportConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    captions, source = (Root.open(str(tmp_path / name)) for name in ("captions", "shards"))
    pictures = [gray(10 * index, (64, 48)) for index in range(20)]
    for shard in ("00000", "00001"):
        rows = clip(source, f"{shard}.mp4", video(pictures), windows=2)
        rows = [replace(row, start_frame=10 * number, end_frame=10 * number + 10) for number, row in enumerate(rows)]
        publish_captioned(captions, rows, shard=shard)
        export_shard(captions, source, shard, how)
    [snippet] = [one for one in LOADERS if ("Video(" in one.text) is (how is TARS)]
    exec(snippet.text, {"__name__": "__main__"})
    printed = capfd.readouterr().out
    assert re.search(
        r"^4 windows; the first: \(2, 48, 64, 3\) Stage 2 of 0000\d.mp4, window \d.$", printed, re.MULTILINE
    )
