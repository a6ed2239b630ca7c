"""The readers of ``docs/reference/tables.md``: each gives the shards' names as strings, whatever they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, Status, publish_captions
from tests.docs.snippets import SNIPPETS, Snippet
from tests.stages import STAGE2

READERS = [
    snippet
    for snippet in SNIPPETS
    if snippet.page == "docs/reference/tables.md" and "captions = " in snippet.text and snippet.reason is None
]
LIBRARIES = ["caption_assets", "pyarrow", "pandas", "polars", "duckdb", "datasets"]
SHARDS = [["00000"], ["00000", "00001"], ["a"], ["2024-01-01"], ["1e5"], ["true"], ["00000", "x"]]
"""Names whose types readers infer as numbers, dates, booleans and strings."""


def library(snippet: Snippet) -> str:
    [name] = [name for name in LIBRARIES if f"import {name}" in snippet.text or f"from {name}" in snippet.text]
    return name


def publish(home: Path, shards: list[str]) -> None:
    row = CaptionRow("a.mp4", 0, "a0", 0.0, 0.3, Status.OK, caption="A car.")
    for shard in shards:
        publish_captions(Root.open(str(home / "captions")), STAGE2.name, shard, [row], [row.key], {}, STAGE2.columns)


def run(snippet: Snippet) -> Any:
    found: dict[str, Any] = {}
    exec(snippet.text, found)
    return found["captions"]


@pytest.mark.fast
def test_each_library_has_a_snippet() -> None:
    assert [library(snippet) for snippet in READERS] == LIBRARIES


@pytest.mark.parametrize("shards", SHARDS, ids=",".join)
@pytest.mark.parametrize(
    "snippet",
    # importing ``datasets`` takes seconds
    [
        pytest.param(one, id=library(one), marks=[] if library(one) == "datasets" else pytest.mark.fast)
        for one in READERS
    ],
)
def test_shards_are_strings(
    snippet: Snippet, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if library(snippet) == "datasets":
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    publish(tmp_path, shards)
    captions = run(snippet)
    found = captions["shard"].to_pylist() if isinstance(captions, pa.Table) else list(captions["shard"])
    assert sorted(found) == shards
    assert {type(shard) for shard in found} == {str}
