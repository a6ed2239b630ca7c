"""Tests of the dashboard in a browser: from a file and from the server, with many shards and hostile texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.dashboard import PAGE, update_dashboard
from caption_assets.report.gallery import gallery_path, write_gallery
from caption_assets.report.shard_summary import Spending, encode_summary, summary_path, write_summary
from caption_assets.store.root import Root
from tests.report.served import served
from tests.report.test_gallery_in_browser import EVIL, HOSTILE, PageActivity, activity
from tests.report.windows import captioned, failed, publish, window
from tests.stages import STAGES

__all__ = ["activity"]  # a fixture

pytestmark = pytest.mark.browser

NAMES = [stage.name for stage in STAGES]
STREET, ODD = "street", "-odd_name.x..y"
CLIP = "a clip #1 & more?.mp4"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with two shards: one with failures and near-duplicates, and one with hostile texts."""
    root = Root.open(str(tmp_path_factory.mktemp("root")))
    rows = [window(CLIP), *(window(f"{number}.mp4") for number in range(5))]
    texts = ["A red car turns left.", "A dog.", "a dog", "A man walks along the street.", "A horse in the rain."]
    answers = [*(captioned(row, text) for row, text in zip(rows, texts, strict=False)), failed(rows[-1])]
    publish(root, rows, answers, answers, shard=STREET)
    hostile = [window(f"{EVIL} {number}.mp4") for number in range(len(HOSTILE))]
    publish(root, hostile, [captioned(row, text) for row, text in zip(hostile, HOSTILE, strict=True)], shard=ODD)
    for shard, spent in ((STREET, Spending(7200, 7200, 4.5)), (ODD, None)):
        stored = StoredShard(root, shard)
        write_gallery(stored, NAMES)
        write_summary(stored, NAMES, spent)
    update_dashboard(root)
    return root


def file_of(root: Root) -> str:
    return Path(root.full(PAGE)).as_uri()


def names_on(page: Page) -> list[str]:
    return page.locator("#shards tbody th").all_inner_texts()


def test_page_opens_from_a_disk_without_requests(page: Page, root: Root, activity: PageActivity) -> None:
    page.goto(file_of(root))
    assert names_on(page) == [ODD, STREET]
    assert page.locator("#shards tbody tr").last.locator("td").all_inner_texts()[:4] == ["6", "5", "1", "0"]
    expect(page.locator("header dl")).to_contain_text("cost4.50", use_inner_text=False)
    expect(page.locator("#worst tbody tr").first).to_contain_text("the engine crashed")
    expect(page.locator("#repeated tbody tr").first).to_contain_text("A dog.")
    assert page.locator("svg rect").count() > 0
    assert activity.messages == []
    assert activity.fetched == [file_of(root)]


def test_shards_are_sorted_and_found(page: Page, root: Root) -> None:
    page.goto(file_of(root))
    rows = page.get_by_role("columnheader", name="Rows")
    for order, names in (("descending", [ODD, STREET]), ("ascending", [STREET, ODD])):
        rows.get_by_role("button").press("Enter")
        expect(rows).to_have_attribute("aria-sort", order)
        assert names_on(page) == names
    page.get_by_role("button", name="Cost").click()
    assert names_on(page) == [STREET, ODD]
    page.get_by_label("Find a shard").fill("ODD")
    expect(page.locator("#count")).to_have_text("1 of 2 shards")
    assert names_on(page) == [ODD]


def test_worst_windows_are_filtered_and_lead_to_their_rows(page: Page, root: Root) -> None:
    page.goto(file_of(root))
    page.get_by_label("Reason").select_option("failed")
    rows = page.locator("#worst tbody tr")
    expect(rows).to_have_count(2)
    rows.first.get_by_role("link").click()
    expect(page.get_by_label("Search")).to_have_value("4.mp4")
    expect(page.locator("#count")).to_have_text("1 of 6 rows")


def test_search_without_the_server_names_its_command(page: Page, root: Root, activity: PageActivity) -> None:
    page.goto(file_of(root))
    page.get_by_role("searchbox", name="Words").fill("car")
    page.keyboard.press("Enter")
    expect(page.locator("#search-state")).to_contain_text("run caption-assets gallery --serve")
    assert activity.fetched == [file_of(root)]


def test_captions_are_searched_on_the_server(page: Page, root: Root, activity: PageActivity) -> None:
    with served(root) as client:
        page.goto(f"{client.base_url}/gallery/")
        words = page.get_by_role("searchbox", name="Words")
        words.fill("TURNS car")
        page.keyboard.press("Enter")
        expect(page.locator("#search-state")).to_have_text("2 captions")
        assert page.locator("#hits mark").all_inner_texts() == ["car", "turns"] * 2
        words.fill("<img")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#search-state")).to_have_text("1 caption")
        assert EVIL in page.locator("#hits").inner_text()
        words.fill("zebra")
        page.keyboard.press("Enter")
        expect(page.locator("#search-state")).to_have_text("0 captions")
        words.fill("left")
        page.keyboard.press("Enter")
        page.locator("#hits a").first.click()
        expect(page.get_by_label("Search")).to_have_value(CLIP)
        expect(page.locator("article")).to_have_count(1)
        assert activity.messages == []
        assert all(url.startswith(str(client.base_url)) for url in activity.fetched)


def test_thousands_of_shards_are_usable(page: Page, root: Root, tmp_path: Path) -> None:
    many = Root.open(str(tmp_path))
    summary = write_summary(StoredShard(root, STREET), NAMES)
    for number in range(2000):
        shard = f"shard-{number:05}"
        path = Path(many.full(summary_path(shard)))
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_summary(replace(summary, shard=shard, windows=number)))
        Path(many.full(gallery_path(shard))).parent.mkdir(parents=True)
    update_dashboard(many)
    page.goto(file_of(many))
    expect(page.locator("#count")).to_have_text("2,000 shards")
    assert page.locator("#shards tbody tr").count() <= 200
    page.get_by_role("button", name="Rows").click()
    assert names_on(page)[0] == "shard-01999"
    page.get_by_label("Find a shard").fill("0042")
    expect(page.locator("#count")).to_have_text("11 of 2,000 shards")


def test_accessibility_checker_finds_nothing(page: Page, root: Root) -> None:
    with served(root) as client:
        page.goto(f"{client.base_url}/gallery/")
        page.get_by_role("searchbox", name="Words").fill("car")
        page.keyboard.press("Enter")
        expect(page.locator("#search-state")).to_have_text("2 captions")
        found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


@pytest.mark.parametrize("width", [360, 1400])
def test_dashboard_fits_the_width_of_the_screen(page: Page, root: Root, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(file_of(root))
    assert page.evaluate("document.documentElement.scrollWidth") == width
