"""The docs' screenshots of Dagster's UI and of a gallery, taken with the demo's data: `make pictures`.

Chromium must be installed: `make system`.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
from playwright.sync_api import Page, sync_playwright

from caption_assets.commands.child import child
from caption_assets.commands.dev import PORT
from caption_assets.settings import LOCAL_LINK_URL
from scripts.dev import REPOSITORY

UI = f"http://127.0.0.1:{PORT}"
FOLDER = REPOSITORY / "docs" / "images"
SHARD = "sample-folder"
START_SECONDS = 120
"""Timeout of the UI's first answer, in seconds."""
SETTLE_MILLISECONDS = 5000
"""Wait for a page's queries and drawings, in milliseconds: the browser has no event for their end."""


def main() -> int:
    """Take all pictures."""
    with _site(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        _take(page, f"{UI}/asset-groups", "asset-graph", height=700, expanded=("source", "captions"))
        _take(page, f"{UI}/assets/stage2_captions?view=partitions&partition={SHARD}", "metadata")
        _take(page, f"{UI}/assets/stage2_captions?view=checks", "checks")
        _take(page, f"{LOCAL_LINK_URL}/gallery/{SHARD}/index.html", "gallery", height=1100)
        browser.close()
    return 0


@contextmanager
def _site() -> Iterator[None]:
    """Run `make dev` within the block."""
    with child([sys.executable, "-m", "scripts.dev"], env=os.environ) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"pictures: no answer from {UI} within {START_SECONDS} s; is port {PORT} in use?")
                time.sleep(1)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()  # if it were killed, Dagster would continue to run


def _answers() -> bool:
    try:
        return httpx.get(f"{UI}/server_info").is_success
    except httpx.TransportError:
        return False


def _take(page: Page, address: str, name: str, *, height: int = 1000, expanded: Sequence[str] = ()) -> None:
    """Write a screenshot of a page to ``name``.png, after expanding groups of the asset graph."""
    page.set_viewport_size({"width": 1500, "height": height})
    page.goto(address)
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    for group in expanded:
        page.get_by_text(group, exact=True).last.dispatch_event("click")  # the canvas covers it, so click() fails
        page.wait_for_timeout(SETTLE_MILLISECONDS)
    if expanded:  # groups stay expanded, and a reloaded page fits the whole graph into the view
        page.reload()
        page.wait_for_timeout(SETTLE_MILLISECONDS)
    page.screenshot(path=FOLDER / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
