"""Tests of the review in Chromium: with a keyboard alone, with an accessibility checker, and by two people at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from caption_assets.store.content_tag import ContentTag
from caption_assets.store.corrections import Correction, Decision, read_corrections, save_correction
from caption_assets.store.previews import write_preview
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow
from caption_assets.video.preview import make_preview
from tests.report.review.desks import Served, desk_of, served_review
from tests.report.windows import FOUR, SHARD, captioned, failed, four_captions, publish, publish_four, window
from tests.stages import STAGE2
from tests.videos import decode, moving, moving_video, video

pytestmark = pytest.mark.browser

SECONDS = 4.0
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
TEXTS = ["A red car turns left.", "A man walks.", "Rain falls on a street.", EVIL, "A dog runs."]


def clip(number: int, **changes: object) -> ManifestRow:
    """The second of two windows of a clip of eight seconds."""
    name = f"clip-{number}.mp4"
    times = {"start_seconds": SECONDS, "end_seconds": 2 * SECONDS, "start_frame": 40, "end_frame": 80, "clip_fps": 10.0}
    return window(name, 1, **{**times, "uri": f"{SHARD}/{name}", **changes})


@pytest.fixture(scope="module")
def movie() -> bytes:
    return moving_video(80, fps=10)


def publish_clips(root: Root, source: Root, movie: bytes) -> list[ManifestRow]:
    """Publish five windows with two stages, the last without a caption of the second."""
    tag = ContentTag(movie).hexdigest()
    clips = [clip(number, content_tag=tag, bytes=len(movie)) for number in range(5)]
    stage1 = [captioned(one, "A scene.") for one in clips]
    stage2 = [captioned(one, text) for one, text in zip(clips, TEXTS, strict=True)]
    publish(root, clips, stage1, [*stage2[:4], failed(clips[4])])
    for one in clips:
        source.write(one.uri, movie)
    return clips


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "root"))


@pytest.fixture
def source(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "source"))


@pytest.fixture
def served(root: Root, source: Root, movie: bytes) -> Iterator[Served]:
    publish_clips(root, source, movie)
    with served_review(desk_of(root), source) as served:
        yield served


def open_review(page: Page, served: Served, query: str = f"&stage={STAGE2.name}") -> list[str]:
    """Open a review; returns the list of the page's errors."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served.address + query)
    expect(page.locator("#row-name")).not_to_be_empty()
    return errors


def name(page: Page) -> str:
    return page.locator("#row-name").inner_text()


def wait_until(page: Page, condition: str) -> None:
    """Wait for a condition in JavaScript. ``wait_for_function`` needs ``eval``, which the page's policy forbids."""
    deadline = monotonic() + 10
    while not page.evaluate(condition):
        assert monotonic() < deadline, condition
        page.wait_for_timeout(20)


def states(root: Root) -> dict[str, tuple[str, str | None]]:
    """Decision with text or reason, by clip."""
    found = read_corrections(root, SHARD).present
    return {one.clip_key: (one.decision.value, one.caption or one.reason) for one in found}


@pytest.mark.representative
def test_review_by_keyboard_alone(page: Page, served: Served, root: Root) -> None:
    errors = open_review(page, served)
    press = page.keyboard.press
    expect(page.locator("#caption")).to_contain_text(TEXTS[0])
    press("a")
    expect(page.locator("#row-name")).to_have_text("clip-1.mp4")
    press("r")
    expect(page.get_by_role("dialog", name="Why is it rejected?")).to_be_visible()
    press("2")
    expect(page.locator("#row-name")).to_have_text("clip-2.mp4")
    press("e")
    expect(page.get_by_label("New text")).to_be_focused()
    press("Control+End")
    page.keyboard.type(" It is night.")
    expect(page.locator("#edit-diff ins")).to_have_text("It is night.")
    press("Control+Enter")
    expect(page.locator("#row-name")).to_have_text("clip-3.mp4")
    expect(page.locator("#caption")).to_contain_text(EVIL)
    press("r")
    press("0")
    page.keyboard.type("it is HTML")
    press("Enter")
    expect(page.locator("#row-name")).to_have_text("clip-4.mp4")
    expect(page.locator("#caption")).to_contain_text("engine: the engine crashed")
    press("a")  # there is nothing to accept
    expect(page.locator("#saving")).to_have_text("all saved")
    assert states(root) == {
        "clip-0.mp4": ("accept", None),
        "clip-1.mp4": ("reject", "wrong action or motion"),
        "clip-2.mp4": ("rewrite", "Rain falls on a street. It is night."),
        "clip-3.mp4": ("reject", "it is HTML"),
    }
    expect(page.locator("#progress-text")).to_have_text("4 of 5 decided")
    press("u")
    expect(page.locator("#row-name")).to_have_text("clip-3.mp4")
    expect(page.locator("#row-state")).to_have_text("undecided")
    press("k")
    expect(page.locator("#decision ins")).to_have_text("It is night.")
    press("x")
    expect(page.locator("#row-state")).to_have_text("undecided")
    press("/")
    page.keyboard.type("car")
    expect(page.locator("#list li")).to_have_count(1)
    press("Enter")
    press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    press("Escape")
    assert set(states(root)) == {"clip-0.mp4", "clip-1.mp4"}
    assert errors == []


def test_video_plays_its_window_alone(page: Page, served: Served) -> None:
    page.emulate_media(reduced_motion="reduce")
    open_review(page, served)
    position = "player.video.currentTime"
    wait_until(page, "player.video.readyState >= 2")
    assert page.evaluate(position) == SECONDS
    assert page.evaluate("player.video.paused")
    page.evaluate(f"player.video.currentTime = {2 * SECONDS - 0.3}")
    page.keyboard.press("Space")
    wait_until(page, f"!player.video.paused && {position} < {2 * SECONDS - 1}")
    assert page.evaluate(position) >= SECONDS
    page.keyboard.press("Space")
    assert page.evaluate("player.video.paused")
    page.evaluate("player.moveTo(1)")
    page.keyboard.press(".")
    assert page.evaluate(position) == pytest.approx(SECONDS + 1.1)
    page.evaluate("player.moveTo(99)")
    assert page.evaluate(position) == pytest.approx(2 * SECONDS - 0.1)
    page.evaluate("player.video.currentTime = 1")
    wait_until(page, f"{position} == {SECONDS}")


def test_video_that_the_browser_cannot_play_shows_its_preview(
    page: Page, root: Root, source: Root, movie: bytes
) -> None:
    old = video(moving(20, (96, 64)), encoder="mpeg2video", container="mpegts")
    changes = {"content_tag": ContentTag(old).hexdigest(), "bytes": len(old), "codec": "mpeg2video"}
    clips = [clip(number, **changes) for number in range(2)]
    publish(root, clips, [captioned(one, "A car.") for one in clips])
    source.write(clips[0].uri, old)
    frames = decode(movie, 0, 40, 6, (64, 96))
    for one in clips:
        write_preview(root, SHARD, one.window_id, make_preview(frames.pixels))
    with served_review(desk_of(root), source) as served:
        open_review(page, served, "")
        expect(page.locator("#video-note")).to_contain_text("cannot play the clip (mpeg2video). Its preview is shown.")
        assert page.locator("#still img").evaluate("image => image.decode().then(() => image.naturalHeight)") > 0
        page.keyboard.press("j")  # its file is missing
        expect(page.locator("#video-note")).to_contain_text("cannot be read: clip clip-1.mp4 is not in the source")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_checker_finds_nothing_serious(
    page: Page, root: Root, source: Root, movie: bytes, scheme: str
) -> None:
    clips = publish_clips(root, source, movie)
    stale = Correction.of(captioned(clips[1], "A woman walks."), STAGE2.name, Decision.REWRITE, "bob", caption="A boy.")
    save_correction(root, SHARD, stale)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    with served_review(desk_of(root), source) as served:
        open_review(page, served)
        check_accessibility(page)
        page.locator("#more-filters summary").press("Enter")
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        expect(page.locator("#row-state")).to_contain_text("outdated")
        page.locator("#others summary").press("Enter")
        page.locator("#about summary").press("Enter")
        check_accessibility(page)
        page.locator("#more-filters summary").press("Enter")
        page.locator("#row").focus()
        page.keyboard.press("e")
        check_accessibility(page)
        page.keyboard.press("Escape")
        page.keyboard.press("r")
        check_accessibility(page)
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        check_accessibility(page)


def check_accessibility(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


def test_two_reviewers_at_once_lose_nothing(page: Page, root: Root, source: Root, movie: bytes) -> None:
    publish_clips(root, source, movie)
    ann, bob = desk_of(root, reviewer="ann"), desk_of(root, reviewer="bob")
    with served_review(ann, source) as one, served_review(bob, source) as other:
        pages = [page, second_page(page)]
        for each, served in zip(pages, (one, other), strict=True):
            open_review(each, served)
        for _ in range(4):
            for each, key in zip(pages, ("a", "r"), strict=True):
                each.keyboard.press(key)
                if key == "r":
                    each.keyboard.press("1")
        for each in pages:
            expect(each.locator("#saving")).to_have_text("all saved")
            expect(each.locator("#row-name")).to_have_text("clip-4.mp4")
        history = read_corrections(root, SHARD).history
        assert sorted((made.reviewer, made.clip_key) for made in history) == [
            (who, f"clip-{number}.mp4") for who in ("ann", "bob") for number in range(4)
        ]
        pages[1].keyboard.press("e")
        pages[1].keyboard.type("A dog runs.")
        pages[1].keyboard.press("Control+Enter")
        expect(pages[1].locator("#saving")).to_have_text("all saved")
        page.evaluate("poll()")
        expect(page.locator("#decision")).to_contain_text("Rewritten by bob")


def second_page(page: Page) -> Page:
    """A page in a context of its own, like another person's browser."""
    assert page.context.browser
    return page.context.browser.new_context(viewport={"width": 1200, "height": 700}).new_page()


def test_decision_that_cannot_be_saved_is_kept_and_saved_later(
    page: Page, root: Root, source: Root, movie: bytes
) -> None:
    publish_clips(root, source, movie)
    desk = desk_of(root)
    with served_review(desk, source) as served:
        port = int(served.url.rpartition(":")[2])
        open_review(page, served)
        expect(page.locator("#saving")).to_have_text("all saved")
    page.keyboard.press("a")
    expect(page.locator("#saving")).to_have_text("1 not saved, retrying")
    expect(page.get_by_role("alert").first).to_contain_text("Cannot save")
    page.keyboard.press("j")
    assert states(root) == {}
    with served_review(desk, source, port) as served:
        expect(page.locator("#saving")).to_have_text("all saved", timeout=10_000)
        assert states(root) == {"clip-0.mp4": ("accept", None)}


def test_decision_of_a_closed_page_is_saved_by_the_next(page: Page, served: Served, root: Root) -> None:
    first = second_page(page)
    open_review(first, served)
    first.route("**/api/corrections", lambda route: route.abort())
    first.keyboard.press("a")
    expect(first.locator("#saving")).to_have_text("1 not saved, retrying")
    first.close(run_before_unload=False)
    following = first.context.new_page()
    open_review(following, served)
    expect(following.locator("#row-state")).to_have_text(re.compile("accepted"))
    assert states(root) == {"clip-0.mp4": ("accept", None)}


def test_url_has_the_state_and_rows_have_links(page: Page, served: Served) -> None:
    open_review(page, served, "")
    page.get_by_role("combobox", name="Stage", exact=True).select_option(STAGE2.name)
    expect(page.locator("#list li")).to_have_count(5)
    page.get_by_role("combobox", name="Order").select_option("longest")
    expect(page.locator("#row-name")).to_have_text("clip-3.mp4")
    page.locator("#row").focus()
    page.keyboard.press("j")
    shown = name(page)
    link = page.locator("#row-name").evaluate("link => link.href")
    assert page.url == link
    other = second_page(page)
    open_review(other, served)
    other.goto(link)
    expect(other.locator("#row-name")).to_have_text(shown)
    expect(other.get_by_role("combobox", name="Order")).to_have_value("longest")
    page.go_back()
    expect(page.get_by_role("combobox", name="Order")).to_have_value("")
    expect(page.locator("#row-name")).to_have_text("clip-0.mp4")


def test_draft_survives_a_cancelled_edit(page: Page, served: Served) -> None:
    open_review(page, served)
    page.keyboard.press("e")
    page.keyboard.press("Control+End")
    page.keyboard.type(" Slowly")
    page.keyboard.press("Escape")
    expect(page.locator("#editor")).to_be_hidden()
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("e")
    expect(page.get_by_label("New text")).to_have_value(f"{TEXTS[0]} Slowly")


def test_letters_are_text_where_one_types_and_keys_can_be_off(page: Page, served: Served, root: Root) -> None:
    open_review(page, served)
    page.keyboard.press("/")
    page.keyboard.type("area")
    page.keyboard.press("Escape")
    assert name(page) == "clip-0.mp4" or page.locator("#none").is_visible()
    page.get_by_label(re.compile("^Search")).fill("")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.get_by_label("Keys are on").press("Space")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.keyboard.press("Control+a")
    page.wait_for_timeout(200)
    assert states(root) == {}


def test_json_and_choices_are_edited_in_their_form(page: Page, root: Root, source: Root) -> None:
    publish_four(root, [clip(0)], attributes=captioned(clip(0), json.dumps({"subjects": [EVIL]})))
    with served_review(desk_of(root, stages=[stage.name for stage in FOUR.stages]), source) as served:
        errors = open_review(page, served, "&stage=alignment")
        expect(page.locator(".choices .chosen")).to_contain_text("yes")
        page.keyboard.press("e")
        page.get_by_label("New choice").select_option("no")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#decision ins")).to_have_text("no")
        page.get_by_role("combobox", name="Stage", exact=True).select_option("attributes")
        expect(page.locator("#caption .fields li")).to_have_text(EVIL)
        page.locator("#row").focus()
        page.keyboard.press("e")
        page.get_by_label("New text").fill("{")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#edit-error")).to_contain_text("not valid JSON")
        assert errors == []
    assert four_captions(clip(0))["alignment"].caption == "yes"


def test_page_without_the_token_says_what_to_open(page: Page, served: Served) -> None:
    page.goto(served.url)
    expect(page.get_by_role("alert").first).to_contain_text("open the address that `caption-assets review` printed")


def test_pages_of_a_long_shard_follow_each_other(page: Page, root: Root, source: Root) -> None:
    clips = [window(f"{number:03}.mp4") for number in range(120)]
    publish(root, clips, [captioned(one, "A car.") for one in clips])
    with served_review(desk_of(root), source) as served:
        open_review(page, served, "")
        expect(page.locator("#count")).to_have_text("1 to 50 of 120 captions")
        page.locator("#list a").last.click()
        page.keyboard.press("j")
        expect(page.locator("#row-name")).to_have_text("050.mp4")
        page.keyboard.press("k")
        expect(page.locator("#row-name")).to_have_text("049.mp4")


@pytest.mark.parametrize("width", [360, 1000, 1500])
def test_review_fits_the_width_of_the_screen(page: Page, served: Served, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    open_review(page, served)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator("#more-filters summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
