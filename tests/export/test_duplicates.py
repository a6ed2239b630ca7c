from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from caption_assets.export.clip import open_tables
from caption_assets.export.duplicates import FrequentText, TextFrequencies
from caption_assets.export.selected_clips import select_clips
from caption_assets.store.root import Root
from tests.export.shards import LINES, export, lines
from tests.report.windows import captioned, publish, window

pytestmark = pytest.mark.fast

SHARDS = 6
WINDOWS = 8
SAME = "A person walks."


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with shards of which each has the same caption a few times, and others once."""
    root = Root.open(str(tmp_path))
    for number in range(SHARDS):
        publish_shard(root, f"{number:03}", [SAME, SAME.upper(), "a person walks"])
    return root


def publish_shard(root: Root, shard: str, repeated: Sequence[str]) -> None:
    texts = [*repeated, *(f"Caption {number} of {shard}." for number in range(WINDOWS - len(repeated)))]
    rows = [window(f"{shard}-{number}.mp4") for number in range(len(texts))]
    captions = [captioned(row, text) for row, text in zip(rows, texts, strict=True)]
    publish(root, rows, [captioned(row, f"Short: {row.clip_key}") for row in rows], captions, shard=shard)


def kept(root: Root, shard: str) -> list[str]:
    """The clips of a shard whose repeated caption is exported."""
    return [line["clip_key"] for line in lines(root, shard) if line["stage2_caption"].lower().startswith("a person")]


def test_text_spread_thinly_over_shards_is_found(root: Root) -> None:
    found = [export(root, LINES, f"{number:03}").most_frequent for number in range(SHARDS)]
    assert found[0] == FrequentText(SAME, 3, 1, WINDOWS)
    assert found[-1] is not None
    assert (found[-1].windows, found[-1].shards, found[-1].total) == (3 * SHARDS, SHARDS, SHARDS * WINDOWS)
    assert found[-1].text.lower().startswith("a person walks")


def test_repeated_export_counts_a_shard_once(root: Root) -> None:
    for _ in range(2):
        found = export(root, LINES, "000").most_frequent
    assert found == FrequentText(SAME, 3, 1, WINDOWS)
    publish_shard(root, "000", [SAME])
    assert export(root, LINES, "000").most_frequent == FrequentText(SAME, 1, 1, WINDOWS)


def test_windows_that_are_not_exported_do_not_count(root: Root) -> None:
    how = replace(LINES, where="clip_key <> '000-0.mp4'")
    found = export(root, how, "000").most_frequent
    assert (found and found.windows, found and found.total) == (2, WINDOWS - 1)


def test_limit_holds_over_all_shards_and_in_any_order(root: Root) -> None:
    how = replace(LINES, max_duplicates=6)
    indexes = [export(root, how, f"{number:03}").index for number in range(SHARDS)]
    forward = [kept(root, f"{number:03}") for number in range(SHARDS)]
    left_out = sum(index.left_out.get("duplicate", 0) for index in indexes)
    assert sum(map(len, forward)) + left_out == 3 * SHARDS
    assert 3 <= sum(map(len, forward)) <= 12
    for number in reversed(range(SHARDS)):
        assert not export(root, how, f"{number:03}").written
    for path in root.sizes("_text_counts"):
        root.remove(path)
    assert [export(root, how, f"{number:03}").written for number in reversed(range(SHARDS))] == [False] * SHARDS
    assert all(len(lines(root, f"{number:03}")) >= WINDOWS - 3 for number in range(SHARDS))


def test_text_within_the_limit_is_kept(root: Root) -> None:
    how = replace(LINES, max_duplicates=3 * SHARDS)
    assert [export(root, how, f"{number:03}").index.windows for number in range(SHARDS)] == [WINDOWS] * SHARDS


def test_shards_are_counted_once_for_all_exports(root: Root) -> None:
    how = replace(LINES, max_duplicates=6)
    export(root, how, "000")
    before = root.tags("_text_counts")
    export(root, how, "001")
    assert root.tags("_text_counts") == before
    publish_shard(root, "002", [])
    export(root, how, "001")
    changed = {path for path in before if "total" not in path and path not in root.tags("_text_counts")}
    assert len(changed) == 1


def test_shard_that_cannot_be_read_does_not_stop_the_others(root: Root) -> None:
    root.write("stage2_captions/shard=003/captions.parquet", b"damaged")
    how = replace(LINES, max_duplicates=6)
    assert export(root, how, "000").index.windows >= WINDOWS - 3


def test_limit_applies_to_texts_and_not_to_windows(root: Root) -> None:
    how = replace(LINES, max_duplicates=1, texts={"stage1_captions": 1.0, "stage2_captions": 1.0})
    with open_tables(root, "000", how.graph.stages) as tables:
        limited = replace(tables, limit=TextFrequencies(root, "000", how).limit())
        [first, *_] = select_clips(limited, how)
    assert [text.stage for text in first.windows[0].texts][:1] == ["stage1_captions"]
    assert export(root, how, "000").index.windows == WINDOWS
