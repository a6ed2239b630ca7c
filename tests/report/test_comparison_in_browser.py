"""Test of the comparison's page in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from caption_assets.report.comparison import compare_captions
from caption_assets.store.previews import Preview, write_preview
from caption_assets.store.root import Root
from tests.report.windows import SHARD, captioned, failed, publish, window
from tests.stages import STAGE1

pytestmark = pytest.mark.browser


def test_comparison_shows_changed_windows_side_by_side(page: Page, tmp_path: Path) -> None:
    clips = [window(f"{number}.mp4") for number in range(4)]
    a, b = Root.open(str(tmp_path / "a")), Root.open(str(tmp_path / "b"))
    rows = [captioned(clip, "A <b>red</b> car.") for clip in clips]
    publish(a, clips, rows)
    publish(b, clips, [rows[0], captioned(clips[1], "A <i>blue</i> car."), failed(clips[2]), rows[3]])
    write_preview(b, SHARD, clips[1].window_id, Preview(b"poster", 1))
    output = tmp_path / "compare.html"
    compare_captions(a, b, SHARD, STAGE1.name, output)
    page.goto(output.as_uri())
    expect(page.locator("#count")).to_have_text("2 rows")
    first = page.locator("article").first
    assert first.locator("del").all_inner_texts() == ["b", "red", "b"]
    assert first.locator("ins").all_inner_texts() == ["i", "blue", "i"]
    expect(first.locator("img")).to_have_attribute("src", "data:image/jpeg;base64,cG9zdGVy")
    page.get_by_role("combobox", name="Change", exact=True).select_option("ok \N{RIGHTWARDS ARROW} failed")
    expect(page.locator("article")).to_have_count(1)
    expect(page.locator("article")).to_contain_text("engine: the engine crashed")
