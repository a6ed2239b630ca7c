from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report import dashboard
from caption_assets.report.dashboard import (
    PAGE,
    SHOWN_GROUPS,
    SHOWN_WORST,
    Dashboard,
    DashboardUpdates,
    build_dashboard,
    render_dashboard,
    update_dashboard,
)
from caption_assets.report.gallery import gallery_path, write_gallery
from caption_assets.report.shard_summary import (
    SUMMARIES,
    Spending,
    encode_summary,
    find_summary,
    summary_path,
    write_summary,
)
from caption_assets.report.summaries import MERGED, Summaries
from caption_assets.store.root import Root
from tests.report.windows import FOUR, broken, captioned, failed, publish, publish_four, window
from tests.stages import STAGES

NAMES = [stage.name for stage in STAGES]
CAR, VAN = window("car.mp4"), window("van.mp4")
LONG = "A man in a dark coat walks slowly along the wet street and looks at the shop windows to his left"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


def publish_shard(root: Root, shard: str, *texts: str, spent: Spending | None = None) -> None:
    """Publish a shard with a window for each text, its gallery and its summary. An empty text is a failure."""
    rows = [window(f"{shard}-{number}.mp4") for number in range(len(texts))]
    answers = [
        captioned(row, text) if text else failed(row, error=f"{shard} failed")
        for row, text in zip(rows, texts, strict=True)
    ]
    publish(root, rows, answers, answers, shard=shard)
    stored = StoredShard(root, shard)
    write_gallery(stored, NAMES)
    write_summary(stored, NAMES, spent)


def merged(root: Root) -> Dashboard:
    return build_dashboard(root.url, Summaries.read(root).decode(), set(root.names("gallery")) - {"index.html"})


def data_of(html: str) -> Any:
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(data)


def table_of(root: Root) -> dict[str, dict[str, Any]]:
    """The stored page's table of shards: values by column, by shard."""
    data = data_of(root.read(PAGE).decode())
    labels = [label for label, _ in data["columns"]]
    return {row[0]: dict(zip(labels, row, strict=True)) for row in data["rows"]}


@pytest.mark.fast
def test_page_has_a_row_for_each_shard(root: Root) -> None:
    publish_shard(root, "b", "A car.", "", spent=Spending(90, 180, 0.5))
    publish_shard(root, "a", "A red car.")
    assert update_dashboard(root) == PAGE
    table = table_of(root)
    assert list(table) == ["a", "b"]
    b = table["b"]
    assert [b[name] for name in ("Rows", "Captioned", "Failed", "Unreadable")] == [2, 1, 1, 0]
    assert (b["Mean words in stage 1"], b["Engine time"], b["Cost"]) == (2, 90, 0.5)
    assert (table["a"]["Engine time"], table["a"]["Cost"]) == (None, None)
    assert table["a"]["Updated"].startswith("20")


@pytest.mark.fast
def test_figures_are_those_of_all_shards(root: Root) -> None:
    publish_shard(root, "a", "A car.", "A van.", spent=Spending(1800, 3600, 1))
    publish_shard(root, "b", "a CAR", "", spent=Spending(1800, 3600))
    figures = dict(merged(root).figures)
    assert (figures["shards"], figures["rows"], figures["clips"]) == ("2", "4", "4")
    assert (figures["captioned"], figures["failed"]) == ("3 (75.0%)", "1 (25.0%)")
    assert figures["repeated texts in stage 1"] == "33.3%"
    assert (figures["engine hours"], figures["GPU hours"], figures["cost"]) == ("1.0", "2.0", "1.00")


@pytest.mark.fast
def test_histograms_and_rankings_are_merged(root: Root) -> None:
    for shard in ("a", "b"):
        publish(root, [CAR, broken("x.mp4")], [captioned(CAR, "word " * 23), failed(VAN)], shard=shard)
        write_gallery(StoredShard(root, shard), NAMES)
        write_summary(StoredShard(root, shard), NAMES)
    page = merged(root)
    [words] = page.histograms
    assert (words.title, words.summary, list(words.counts)) == ("Words in stage 1", "mean 23.0", [0, 0, 0, 0, 2])
    assert (words.first, words.last) == ("0", "25")
    assert [(one.title, list(one.counts)) for one in page.rankings] == [
        ("Unreadable clips", [("unreadable", 2)]),
        ("Failures in stage 1", [("engine", 2)]),
    ]


@pytest.mark.fast
def test_histogram_of_long_captions_has_few_bars(root: Root) -> None:
    publish_shard(root, "a", *(["word " * 400] * 1000), "word " * 990)
    histogram = merged(root).histograms[0]
    assert len(histogram.counts) <= dashboard.BARS
    assert sum(histogram.counts) == 1001
    assert histogram.last == "405 and more"


@pytest.mark.fast
def test_scores_have_a_column_and_a_histogram(root: Root) -> None:
    publish_four(root, [CAR, VAN])
    names = [stage.name for stage in FOUR.stages]
    write_gallery(StoredShard(root, "shard"), names)
    write_summary(StoredShard(root, "shard"), names)
    update_dashboard(root)
    assert table_of(root)["shard"]["Mean score of alignment"] == 0.9
    scores = merged(root).histograms[-1]
    assert (scores.title, scores.summary, scores.counts[18]) == ("Scores of alignment", "mean 0.900", 2)


@pytest.mark.fast
def test_worst_windows_come_from_all_shards_in_turn(root: Root) -> None:
    publish_shard(root, "a", "", "", "")
    names = [f"shard-{number}" for number in range(30)]
    [summary] = Summaries.read(root).decode()
    worst = build_dashboard(root.url, [replace(summary, shard=name) for name in names], names).worst
    assert [window.shard for window in worst] == names[:SHOWN_WORST]
    assert {window.example.text for window in worst} == {"a failed"}


@pytest.mark.fast
def test_near_duplicates_are_merged_over_shards(root: Root) -> None:
    publish_shard(root, "a", LONG, f"{LONG}, then stops.", "A dog.", "A cat.")
    publish_shard(root, "b", "A horse.", "A horse.", LONG.upper(), LONG, LONG)
    groups = [group for group in merged(root).repeated if group.stage == NAMES[0]]
    assert [(group.count, group.shards, group.shard) for group in groups] == [(5, {"a", "b"}, "b"), (2, {"b"}, "b")]
    assert groups[1].first.text == "A horse."


@pytest.mark.fast
def test_groups_of_near_duplicates_are_bounded(root: Root) -> None:
    publish_shard(root, "a", *(f"Text number {number // 2} of its own kind." for number in range(100)))
    assert len(merged(root).repeated) <= 2 * SHOWN_GROUPS


@pytest.mark.fast
def test_only_changed_summaries_are_read_again(root: Root) -> None:
    for shard in ("a", "b", "c"):
        publish_shard(root, shard, "A car.")
    update_dashboard(root)
    before = find_summary(root, "a")
    assert before
    hidden = Path(root.full(summary_path("a")))
    other = encode_summary(before).replace(b'"windows":1', b'"windows":9')
    with hidden.open("r+b") as file:  # neither size nor time nor inode change
        status = hidden.stat()
        file.write(other)
    os.utime(hidden, ns=(status.st_atime_ns, status.st_mtime_ns))
    publish_shard(root, "b", "A car.", "A van.")
    update_dashboard(root)
    assert [row["Rows"] for row in table_of(root).values()] == [1, 2, 1]
    root.remove(MERGED)
    update_dashboard(root)
    assert [row["Rows"] for row in table_of(root).values()] == [9, 2, 1]


@pytest.mark.fast
def test_shard_whose_gallery_or_summary_was_removed_vanishes(root: Root) -> None:
    for shard in ("a", "b", "c"):
        publish_shard(root, shard, "A car.")
    update_dashboard(root)
    for folder in ("gallery/a", f"{SUMMARIES}/shard=a", "gallery/b"):
        root.remove_folder(folder)
    update_dashboard(root)
    assert list(table_of(root)) == ["c"]
    assert pq.read_table(root.full(MERGED))["shard"].to_pylist() == ["b", "c"]


@pytest.mark.fast
@pytest.mark.parametrize("damage", [None, b"{}"])
def test_gallery_without_a_readable_summary_is_listed(root: Root, damage: bytes | None) -> None:
    publish_shard(root, "a", "A car.")
    root.write(gallery_path("earlier"), b"page of an earlier release")
    if damage:
        root.write(summary_path("earlier"), damage)
    update_dashboard(root)
    assert list(table_of(root)) == ["a", "earlier"]
    assert set(table_of(root)["earlier"].values()) == {"earlier", None}
    assert "1 shard has previews or a gallery, but no summary" in root.read(PAGE).decode()
    assert dict(merged(root).figures)["shards"] == "2"


@pytest.mark.fast
@pytest.mark.parametrize("damage", [b"", b"PAR1", b"PAR1 not a table PAR1"])
def test_damaged_merged_object_is_made_anew(root: Root, damage: bytes) -> None:
    publish_shard(root, "a", "A car.")
    root.write(MERGED, damage)
    update_dashboard(root)
    assert list(table_of(root)) == ["a"]
    assert Summaries.read(root).is_merged


@pytest.mark.fast
def test_root_without_galleries_has_a_page(root: Root) -> None:
    update_dashboard(root)
    assert "There are no galleries yet" in root.read(PAGE).decode()


@pytest.mark.fast
def test_text_of_captions_and_names_is_escaped(root: Root) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    publish_shard(root, "a", evil, evil, "")
    html = render_dashboard(root)
    assert evil not in html
    assert data_of(html)["repeated"][0][5] == evil
    assert "default-src &#39;none&#39;" in html


@pytest.mark.fast
def test_writers_at_the_same_time_leave_all_shards_on_the_page(root: Root) -> None:
    publish_shard(root, "first", "A car.")

    def publish_some(name: str) -> None:
        for number in range(4):
            publish_shard(root, f"{name}-{number}", "A car.")
            update_dashboard(root)

    threads = [threading.Thread(target=publish_some, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(table_of(root)) == 13
    update_dashboard(root)
    assert Summaries.read(root).is_merged


@pytest.mark.fast
def test_run_updates_the_page_once_within_the_interval_and_at_its_end(root: Root) -> None:
    updates = DashboardUpdates(root, interval=3600)
    shown = []
    for shard in ("a", "b"):
        publish_shard(root, shard, "A car.")
        updates.shard_changed()
        shown.append(list(table_of(root)))
    updates.finish()
    assert [*shown, list(table_of(root))] == [["a"], ["a"], ["a", "b"]]
    root.remove(PAGE)
    updates.finish()
    assert not root.exists(PAGE)


@pytest.mark.fast
def test_long_run_updates_the_page_before_its_end(root: Root) -> None:
    updates = DashboardUpdates(root, interval=0)
    for shard in ("a", "b"):
        publish_shard(root, shard, "A car.")
        updates.shard_changed()
    assert list(table_of(root)) == ["a", "b"]


@pytest.mark.store
def test_changes_in_object_storage_are_found_by_their_tags(s3_url: str) -> None:
    root = Root.open(s3_url)
    for shard in ("a", "b"):
        publish_shard(root, shard, "A car.")
    update_dashboard(root)
    assert Summaries.read(root).is_merged
    publish_shard(root, "a", "A car.", "A van.")
    assert not Summaries.read(root).is_merged
    update_dashboard(root)
    assert [row["Rows"] for row in table_of(root).values()] == [2, 1]
    root.remove_folder("gallery/b")
    root.remove_folder(f"{SUMMARIES}/shard=b")
    update_dashboard(root)
    assert list(table_of(root)) == ["a"]
