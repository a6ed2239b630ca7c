"""Benchmark of the dashboard: 1,000,000 synthetic windows in 200 shards.

    python -m benchmarks.dashboard [--windows 1000000] [--shards 200] [--folder FOLDER]

It writes tables with the store's own writer: manifests, a stage of texts and one of scores, 2 % of them with repeated
texts. It measures the time to summarize all tables, to make the dashboard from the summaries with nothing merged before
and after one shard has changed, to find captions, and until headless Chromium shows the first content and all of the
first rows. For comparison, DuckDB scans all tables for the same counts and lengths. The last line is JSON.

The tables stay in FOLDER, if one is given, and are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
from playwright.sync_api import Browser, sync_playwright

from benchmarks.gallery import caption, sentence, window
from caption_assets.captioning.output import ChoiceOutput, output_identity
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.stages import Stage
from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.caption_search import CaptionSearch
from caption_assets.report.dashboard import PAGE, update_dashboard
from caption_assets.report.gallery import gallery_path
from caption_assets.report.server import gallery_app, listen, serving
from caption_assets.report.shard_summary import SUMMARIES, Spending, write_summary
from caption_assets.report.summaries import MERGED
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionRow,
    ManifestRow,
    publish_captions,
    publish_manifest,
    stored_shards,
    table_path,
    window_id,
)
from scripts.setup_system import BROWSERS

TEXTS: Stage = built_in("general").stages[0]
SCORES = Stage("alignment", f"Does {{{TEXTS.name}}} fit the video?", ChoiceOutput(("yes", "no"), "yes"))
STAGES = TEXTS.name, SCORES.name
WORDS = 60
REPEATED = 50
"""One of so many windows has a text of its shard's first window or of all shards'."""
RUNS = 5
SEARCHES = {"frequent": "word77", "rare": f'"{"word1000 word1500"}"', "none": "zebra"}
FULL_SCAN = """
select shard, count(*), count(caption), sum(len(flags) > 0)::int, avg(len(string_split(caption, ' ')))
from read_parquet(?) group by shard
"""
WATCH = """
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) globalThis.firstAt = entry.startTime;
}).observe({ type: 'paint', buffered: true });
const look = () => {
  if (!document.querySelector('#shards tbody tr')) return requestAnimationFrame(look);
  requestAnimationFrame(() => { globalThis.rowsAt = performance.now(); });
};
requestAnimationFrame(look);
"""
"""Script that records when something is drawn, and when the table has its first rows."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None, help="Folder of the tables, which is kept.")
    arguments = parser.parse_args()
    with folder_of(arguments.folder) as folder:
        root = Root.open(str(folder))
        shards = [f"shard-{number:05}" for number in range(arguments.shards)]
        write_tables(root, shards, arguments.windows // arguments.shards)
        figures = {"windows": arguments.windows, "shards": arguments.shards}
        figures |= measure_dashboard(root, shards)
        figures |= measure_search(root)
        figures |= measure_browser(root)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


@contextmanager
def folder_of(path: Path | None) -> Iterator[Path]:
    """The folder of the tables: the given one, or a temporary one."""
    if path:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def write_tables(root: Root, shards: list[str], windows: int) -> None:
    """Write the tables of the shards that have none."""
    made = stored_shards(root, SCORES.name)
    missing = [(number, shard) for number, shard in enumerate(shards) if shard not in made]
    begun = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(write_shard, root.url, shard, number, windows) for number, shard in missing]
        for job in jobs:
            job.result()
    print(f"{len(missing)} shards of {windows} windows written in {time.monotonic() - begun:.0f} s", flush=True)


def write_shard(url: str, shard: str, number: int, windows: int) -> None:
    """Write a shard's tables and a stand-in for its gallery."""
    root, rng = Root.open(url), np.random.default_rng(number)
    manifest = [named(window(index), f"{shard}/clip-{index:06}.mp4") for index in range(windows)]
    publish_manifest(root, shard, manifest, {})
    keys = [row.key for row in manifest]
    everywhere, here = sentence(np.random.default_rng(0), WORDS), sentence(rng, WORDS)
    texts = [
        replace(
            caption(row, [everywhere, here][index // REPEATED % 2] if index % REPEATED == 0 else sentence(rng, WORDS)),
            flags=("repetition",) if index % 97 == 0 else (),
        )
        for index, row in enumerate(manifest)
    ]
    scores = [scored(row, float(score)) for row, score in zip(manifest, rng.beta(5, 2, windows), strict=True)]
    for stage, rows in ((TEXTS, texts), (SCORES, scores)):
        metadata = {"prompt": stage.prompt, "recipe_version": "1", "recipe": json.dumps(output_identity(stage.output))}
        publish_captions(root, stage.name, shard, rows, keys, metadata, stage.columns)
    root.write(gallery_path(shard), b"a gallery")


def named(row: ManifestRow, key: str) -> ManifestRow:
    """A manifest row with another clip."""
    return replace(row, clip_key=key, window_id=window_id(key, 0, "tag"))


def scored(row: ManifestRow, score: float) -> CaptionRow:
    """The row of a score."""
    text = "yes" if score >= 0.5 else "no"
    return replace(caption(row, text), probabilities={"yes": score, "no": 1 - score}, output_tokens=1)


def measure_dashboard(root: Root, shards: list[str]) -> dict[str, float]:
    """Times of summaries and dashboard, in seconds, and sizes."""
    spent = Spending(120.0, 120.0, 0.1)
    figures = {"summarize_all_s": seconds(lambda: summarize(root, shards, spent))}
    print(f"all tables summarized in {figures['summarize_all_s']:.0f} s", flush=True)

    def cold() -> None:
        root.remove(MERGED)
        root.remove(PAGE)
        update_dashboard(root)

    def one_changed() -> None:
        write_summary(StoredShard(root, shards[0]), STAGES, spent)
        update_dashboard(root)

    figures["dashboard_cold_s"] = median(cold)
    figures["dashboard_one_changed_with_its_summary_s"] = median(one_changed)
    figures["dashboard_unchanged_s"] = median(lambda: update_dashboard(root))
    paths = [root.full(table_path(TEXTS.name, shard)) for shard in shards]
    figures["duckdb_scan_of_the_texts_s"] = median(lambda: duckdb.execute(FULL_SCAN, [paths]).fetchall())
    sizes = root.sizes(SUMMARIES)
    figures["summary_kb"] = statistics.mean(size for path, size in sizes.items() if path != MERGED) / 1e3
    figures["merged_mb"] = sizes[MERGED] / 1e6
    figures["page_kb"] = root.fs.size(root.full(PAGE)) / 1e3
    tables = (root.sizes(name) for name in (CLIP_MANIFEST, *STAGES))
    figures["tables_mb"] = sum(sum(sizes.values()) for sizes in tables) / 1e6
    return figures


def summarize(root: Root, shards: list[str], spent: Spending) -> None:
    """Write the summaries of all shards, in a process for each core."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for job in [pool.submit(summarize_shard, root.url, shard, spent) for shard in shards]:
            job.result()


def summarize_shard(url: str, shard: str, spent: Spending) -> None:
    """Write a shard's summary."""
    write_summary(StoredShard(Root.open(url), shard), STAGES, spent)


def measure_search(root: Root) -> dict[str, float]:
    """Times of searches over all captions, in seconds."""
    search, figures = CaptionSearch(root, STAGES), {}
    for name, words in SEARCHES.items():
        found = search.find(words)
        print(f"search for {words}: {len(found.hits)} captions{' and more' if found.has_more else ''}", flush=True)
        figures[f"search_{name}_s"] = median(partial(search.find, words))
    return figures


def measure_browser(root: Root) -> dict[str, float]:
    """Times of the page in a browser, in milliseconds from the navigation: from its file, and from the server."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)))  # `make system` installs one
    app = gallery_app(root, STAGES)
    with sync_playwright() as playwright, listen("127.0.0.1", 0) as listener, serving(app, listener):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        addresses = {
            "file": Path(root.full(PAGE)).as_uri(),
            "served": f"http://127.0.0.1:{listener.getsockname()[1]}/gallery/",
        }
        figures = {}
        for name, address in addresses.items():
            times = [open_page(browser, address) for _ in range(RUNS)]
            figures[f"first_content_{name}_ms"] = statistics.median(first for first, _ in times)
            figures[f"first_rows_{name}_ms"] = statistics.median(rows for _, rows in times)
        browser.close()
    return figures


def open_page(browser: Browser, address: str) -> tuple[float, float]:
    """Open a page with an empty cache."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    page.goto(address, wait_until="commit")
    times: list[float | None] = [None]
    while None in times:  # the page's policy does not let Playwright wait inside it
        time.sleep(0.1)
        times = page.evaluate("[globalThis.firstAt, globalThis.rowsAt]")
    context.close()
    first, rows = (float(one) for one in times if one is not None)
    return first, rows


def median(run: Callable[[], object]) -> float:
    """Median time of several calls, in seconds."""
    return statistics.median(seconds(run) for _ in range(RUNS))


def seconds(run: Callable[[], object]) -> float:
    """Time of a call, in seconds."""
    begun = time.monotonic()
    run()
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
