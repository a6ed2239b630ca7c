"""Benchmark of the gallery: time to write it, time until it shows rows, and its size.

    python -m benchmarks.gallery [--rows 5000]

The gallery has captions of 60 and 90 words, like those of Qwen2.5-VL, and a preview for each window.
Headless Chromium opens it several times from its file. The times run from the navigation until the first card with its
picture is drawn, until all rows can be searched, and until all previews are loaded. Then Chromium opens it once at 50
Mbit/s, as from a store. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import resource
import shutil
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from caption_assets.captioning.recipe_file import built_in
from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.gallery import write_gallery
from caption_assets.sample.world import random_scene, render
from caption_assets.store.previews import Preview, write_preview
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, Status, publish_captions, publish_manifest, window_id
from caption_assets.video.preview import FRAMES, make_preview
from scripts.setup_system import BROWSERS

SHARD = "large"
STAGE1, STAGE2 = built_in("general").stages
SIZE = 320, 180
"""Width and height of the frames of a preview, in pixels."""
PREVIEWS = 50
"""Number of different previews."""
OPENINGS = 7
BYTES_PER_SECOND = 50e6 / 8
VOCABULARY = 2000
WATCH = """
const look = () => {
  const image = document.querySelector('article img[src]');
  if (!image || !image.complete) return requestAnimationFrame(look);
  requestAnimationFrame(() => { globalThis.firstAt = performance.now(); });
};
requestAnimationFrame(look);
const count = () => {
  const text = document.getElementById('count')?.value;
  if (!text || text.includes('loading')) return requestAnimationFrame(count);
  globalThis.searchableAt = performance.now();
};
requestAnimationFrame(count);
addEventListener('DOMContentLoaded', () => { globalThis.wholeAt = performance.now(); });
"""
"""Script that records when the first card is drawn, when all rows can be searched, and when all previews are loaded."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Times of a page, in milliseconds from the navigation."""

    first: float
    """Until the first card with its picture is drawn."""
    searchable: float
    """Until all rows can be searched."""
    whole: float
    """Until all previews are loaded."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    count = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        root = Root.open(folder)
        preview_bytes = write_shard(root, count)
        begun, base = time.monotonic(), peak_mb()
        page = Path(root.full(write_gallery(StoredShard(root, SHARD), [STAGE1.name, STAGE2.name])))
        print(
            f"{count} rows: written in {time.monotonic() - begun:.1f} s, "
            f"peak memory {peak_mb() - base:.0f} MB above {base:.0f} MB"
        )
        chromium = next(filter(None, map(shutil.which, BROWSERS)))  # `make system` installs one
        with sync_playwright() as playwright, serve(page.parent) as address:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            times = [open_page(browser, page.as_uri()) for _ in range(OPENINGS)]
            slow = open_page(browser, f"{address}/index.html")
            browser.close()
        figures = {
            f"first_content_ms_{count}": statistics.median(one.first for one in times),
            f"first_content_ms_{count}_worst": max(one.first for one in times),
            f"searchable_ms_{count}": statistics.median(one.searchable for one in times),
            f"whole_ms_{count}": statistics.median(one.whole for one in times),
            "first_content_ms_50_mbit": slow.first,
            "searchable_ms_50_mbit": slow.searchable,
            "whole_ms_50_mbit": slow.whole,
            f"page_mb_{count}": page.stat().st_size / 1e6,
            "preview_kb": preview_bytes / 1e3,
        }
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


def write_shard(root: Root, count: int) -> float:
    """Publish a shard's tables and previews, and return the mean size of a preview in bytes."""
    rng = np.random.default_rng(0)
    previews = [preview(rng) for _ in range(PREVIEWS)]
    manifest = [window(number) for number in range(count)]
    publish_manifest(root, SHARD, manifest, {})
    keys = [row.key for row in manifest]
    stage1 = [caption(row, sentence(rng, 60)) for row in manifest]
    stage2 = [
        caption(row, f"{before.caption} {sentence(rng, 30)}") for row, before in zip(manifest, stage1, strict=True)
    ]
    for stage, rows in ((STAGE1, stage1), (STAGE2, stage2)):
        publish_captions(root, stage.name, SHARD, rows, keys, {"prompt": stage.prompt}, stage.columns)
    for number, row in enumerate(manifest):
        write_preview(root, SHARD, row.window_id, previews[number % PREVIEWS])
    return sum(len(one.jpeg) for one in previews) / PREVIEWS


def preview(rng: np.random.Generator) -> Preview:
    """A scene of the sample world with noise, which compresses like real pictures."""
    scene = random_scene(rng, *SIZE)
    frames = np.stack(list(render(scene, *SIZE, np.linspace(0, 1, FRAMES).tolist(), rng)))
    noise = rng.normal(0, 10, frames.shape[:3])[..., None]
    return make_preview(np.clip(frames + noise, 0, 255).astype(np.uint8))


def window(number: int) -> ManifestRow:
    """The manifest row of a window."""
    key = f"camera-{number % 7}/clip-{number:06}.mp4"
    return ManifestRow(
        key,
        0,
        window_id(key, 0, "tag"),
        "tag",
        2 << 20,
        Status.OK,
        codec="h264",
        width=1280,
        height=720,
        clip_frames=256,
        clip_seconds=10.67,
        start_frame=0,
        end_frame=256,
        start_seconds=0.0,
        end_seconds=10.67,
    )


def caption(row: ManifestRow, text: str) -> CaptionRow:
    """The caption row of a window."""
    return CaptionRow(
        clip_key=row.clip_key,
        window_index=row.window_index,
        window_id=row.window_id,
        start_seconds=row.start_seconds,
        end_seconds=row.end_seconds,
        status=Status.OK,
        caption=text,
        finish_reason="stop",
        model="Qwen/Qwen2.5-VL-7B-Instruct",
        revision="cc59489",
        prompt_name="general",
        sampling={"temperature": 0.1, "top_p": 0.001, "repetition_penalty": 1.05, "max_output_tokens": 512},
        frame_indices=tuple(range(0, 256, 12)),
        frame_fps=2.0,
        frame_width=448,
        frame_height=252,
        prompt_tokens=2500,
        cached_tokens=2400,
        output_tokens=80,
        attempts=1,
    )


def sentence(rng: np.random.Generator, words: int) -> str:
    """A sentence of six-letter words."""
    return " ".join(f"word{number:02}" for number in rng.integers(VOCABULARY, size=words)) + "."


def open_page(browser: Browser, address: str) -> Opening:
    """Open a page with an empty cache."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    page.goto(address, wait_until="commit")
    times: list[float | None] = [None]
    while None in times:  # the page's policy does not let Playwright wait inside it
        time.sleep(0.2)
        times = page.evaluate("[globalThis.firstAt, globalThis.searchableAt, globalThis.wholeAt]")
    context.close()
    return Opening(*(float(one) for one in times if one is not None))


class serve:
    """A web server on loopback that serves a folder as slowly as a distant store."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(SlowHandler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()


class SlowHandler(http.server.SimpleHTTPRequestHandler):
    """Request handler that limits its rate."""

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        """Copy a file at the limited rate."""
        chunk = 64 << 10
        while data := source.read(chunk):
            outputfile.write(data)
            time.sleep(len(data) / BYTES_PER_SECOND)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def peak_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB


if __name__ == "__main__":
    main()
