"""Tests of the gallery in a browser: from a file and from a presigned URL, with real previews and hostile texts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, Error, Locator, Page, Route, expect

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.gallery import write_gallery
from caption_assets.sample.shards import FOLDER_SHARD
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.corrections import Correction, Decision, save_correction
from caption_assets.store.previews import preview_folder, write_preview
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, Status
from caption_assets.video.preview import FRAMES as FRAMES_SHOWN
from caption_assets.video.preview import make_preview
from caption_assets.video.window import Windowing
from tests.conftest import SANDBOX, Truth
from tests.report.windows import FOUR, SHARD, broken, captioned, failed, publish, publish_four, window
from tests.stages import STAGES
from tests.videos import decode

pytestmark = pytest.mark.browser

DEFAULT = [stage.name for stage in STAGES]
FRAMES, SIZE = 8, (84, 112)
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script></script></style><!--<script>"
HOSTILE = [
    EVIL,
    "x" * 100_000,
    "word " * 20_000,
    "\u202e" * 50 + "kcab ot tnorf",
    "\u0627\u0644\u0633\u064a\u0627\u0631\u0629 \u062d\u0645\u0631\u0627\u0621",
    "Z" + "\u0336\u0321\u0489" * 3_000,
    "javascript:alert(3)",
    "{{ 7 * 7 }}${7 * 7}",
    "\u2028\u2029\x00\x07\ufeff",
]


@dataclass
class PageActivity:
    """The dialogs, errors and requests of a page."""

    page: Page
    messages: list[str] = field(default_factory=list)
    """Texts of dialogs, of errors, and of violations of the page's policy."""
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("dialog", self._refuse)
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _refuse(self, dialog: Dialog) -> None:
        self.messages.append(dialog.message)
        dialog.dismiss()

    @property
    def fetched(self) -> list[str]:
        """Requested URLs, without data URLs."""
        return [url for url in self.requests if not url.startswith("data:")]


@pytest.fixture
def activity(page: Page) -> PageActivity:
    return PageActivity(page)


def gallery_at(root: Root, shard: str = SHARD) -> str:
    return Path(root.full(write_gallery(StoredShard(root, shard), DEFAULT))).as_uri()


def four_gallery_at(root: Root) -> str:
    names = [stage.name for stage in FOUR.stages]
    return Path(root.full(write_gallery(StoredShard(root, SHARD), names))).as_uri()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a gallery of 5,000 rows. Every hundredth row failed."""
    root = Root.open(str(tmp_path_factory.mktemp("large")))
    windows = [window(f"camera-{number % 7}/{number:05}.mp4") for number in range(5000)]
    texts = [f"A car of color {number % 11} turns left at crossing {number}." for number in range(5000)]
    stage1 = [captioned(one, text) for one, text in zip(windows, texts, strict=True)]
    stage2 = [
        failed(one) if not number % 100 else captioned(one, f"In the rain, {text}" if number % 2 else text)
        for number, (one, text) in enumerate(zip(windows, texts, strict=True))
    ]
    publish(root, windows, stage1, stage2)
    return gallery_at(root)


@pytest.fixture(scope="module")
def sample_root(sample_data: Path, truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with the manifest, the correct captions and the previews of a sample shard."""
    root, source = Root.open(str(tmp_path_factory.mktemp("sample"))), Root.open(str(sample_data / "shards"))
    publish_sample(root, source, truth)
    return root


def publish_sample(root: Root, source: Root, truth: Truth, *, earlier: bool = False) -> None:
    """Publish a sample shard with its previews, or with those of an earlier release."""
    shard = find_shard(source, FOLDER_SHARD)
    manifest = [row for clip in probe_clips(SANDBOX, source, shard, Windowing()) for row in clip.rows]
    stages: tuple[list[CaptionRow], list[CaptionRow]] = [], []
    for row in manifest:
        if row.status is Status.FAILED:
            for rows in stages:
                rows.append(failed(row, row.error_kind or "", row.error or ""))
            continue
        data = (Path(source.path) / row.uri).read_bytes()
        frames = decode(data, row.start_frame or 0, row.end_frame or 0, FRAMES, SIZE)
        if earlier:
            root.write(f"{preview_folder(FOLDER_SHARD)}/{row.window_id}.jpg", make_preview(frames.pixels[:1]).jpeg)
        else:
            write_preview(root, FOLDER_SHARD, row.window_id, make_preview(frames.pixels))
        answers = truth[FOLDER_SHARD][row.clip_key][row.window_index or 0]
        for rows, stage in zip(stages, STAGES, strict=True):
            rows.append(captioned(row, answers[stage.name]))
    publish(root, manifest, *stages, shard=FOLDER_SHARD)


def test_gallery_of_5000_rows_adds_cards_while_scrolling(page: Page, large: str, activity: PageActivity) -> None:
    page.goto(large)
    expect(page.locator("#count")).to_have_text("5,000 rows")
    cards = page.locator("article")
    assert 0 < cards.count() < 200
    expect(cards.first).to_contain_text("camera-0/00000.mp4")
    before = cards.count()
    cards.last.scroll_into_view_if_needed()
    expect(cards.nth(before)).to_be_attached()
    assert activity.messages == []
    assert activity.fetched == [large]


def test_gallery_searches_and_filters_rows(page: Page, large: str) -> None:
    page.goto(large)
    page.get_by_label("Search").fill("CAMERA-3 crossing 10")
    expect(page.locator("#count")).to_have_text(re.compile(r"^\d+ of 5,000 rows$"))
    assert all("camera-3" in name for name in page.locator("h2").all_inner_texts() if name)
    page.get_by_label("Search").fill("")
    page.get_by_label("Error").select_option("engine")
    expect(page.locator("#count")).to_have_text("50 of 5,000 rows")
    expect(page.locator("article").first).to_contain_text("engine: the engine crashed")
    page.get_by_label("Status").select_option("captioned")
    expect(page.get_by_text("No rows match these filters")).to_be_visible()
    page.get_by_role("button", name="Show all rows").click()
    expect(page.locator("#count")).to_have_text("5,000 rows")
    page.get_by_label("Differing captions only").check()
    expect(page.locator("#count")).to_have_text("2,500 of 5,000 rows")
    expect(page.locator("ins").first).to_have_text("In the rain,")


def test_details_open_and_close_by_keyboard(page: Page, large: str) -> None:
    page.goto(large)
    page.get_by_label("Differing captions only").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="camera-0/00000.mp4")
    expect(dialog).to_be_visible()
    for fact in (
        "0, 50, 99",
        "2,500 (2,048 cached)",
        "sample",
        "general: Describe the video.",
        "temperature 0.1",
    ):
        expect(dialog).to_contain_text(fact)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="camera-1/00001.mp4")).to_be_visible()
    page.get_by_role("button", name="Previous").press("Enter")
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="camera-1/00001.mp4")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Details").first).to_be_focused()


def test_hostile_texts_are_shown_as_text(page: Page, tmp_path: Path, activity: PageActivity) -> None:
    root = Root.open(str(tmp_path))
    windows = [*(window(f"{number}{EVIL}") for number in range(len(HOSTILE))), broken(EVIL)]
    stage1 = [captioned(one, text, flags=(EVIL,)) for one, text in zip(windows, HOSTILE, strict=False)]
    stage2 = [captioned(one, f"{text} and more", prompt_name=EVIL) for one, text in zip(windows, HOSTILE, strict=False)]
    last = failed(windows[-1], EVIL, EVIL)
    publish(root, windows, [*stage1, last], [*stage2, last])
    url = gallery_at(root)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(url)
    cards = page.locator("article")
    expect(cards).to_have_count(len(windows))
    expect(cards.first.locator("ins").first).to_have_text(re.compile("and more"))
    for number, text in enumerate(HOSTILE):
        cards.nth(number).get_by_role("button", name="Details").click()
        body = page.locator("#details-body .caption").first
        assert json.loads(body.evaluate("element => JSON.stringify(element.textContent)")) == text
        page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("main img[src], main script, main style").count() == 0
    assert activity.messages == []
    assert activity.fetched == [url]


def test_json_and_choices_are_readable(page: Page, tmp_path: Path, activity: PageActivity) -> None:
    root, car = Root.open(str(tmp_path)), window("car.mp4")
    publish_four(root, [car], attributes=captioned(car, json.dumps({"subjects": [EVIL], "camera": {"motion": EVIL}})))
    page.goto(four_gallery_at(root))
    card = page.locator("article")
    assert card.locator("h3").all_inner_texts() == ["Short", "Dense", "Attributes", "Alignment"]
    assert card.locator("ins").all_inner_texts() == ["red"]
    assert card.locator(".fields dt").all_inner_texts() == ["subjects", "camera", "motion"]
    expect(card.locator(".fields li")).to_have_text(EVIL)
    assert card.locator(".choices dt").all_inner_texts() == ["yes", "no"]
    assert card.locator(".choices dd").all_inner_texts() == ["90.0%", "10.0%"]
    expect(card.locator(".choices .chosen")).to_contain_text("yes")
    expect(card).to_contain_text("score 0.900")
    page.get_by_role("combobox", name="Alignment").select_option("yes")
    expect(page.locator("#count")).to_have_text("1 rows")
    assert activity.messages == []


def test_policy_blocks_injected_html_and_requests(page: Page, large: str) -> None:
    page.goto(large)
    with pytest.raises(Error, match="requires 'TrustedHTML'"):
        page.evaluate("document.body.innerHTML = '<b>bold</b>'")
    with page.expect_event("requestfailed") as blocked:
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('img'), {src: 'https://127.0.0.1/x'}))"
        )
    assert blocked.value.failure == "csp"


def shown_frame(picture: Locator) -> str:
    """The position of a preview's frame that is shown."""
    return str(picture.evaluate("image => image.style.objectPosition"))


MIDDLE = "0px 60%"
"""Position of the middle frame of six."""


def test_previews_are_embedded_and_play_on_hover(page: Page, sample_root: Root, activity: PageActivity) -> None:
    url = gallery_at(sample_root, FOLDER_SHARD)
    page.goto(url)
    picture = page.locator("article img").first
    expect(picture).to_have_attribute("src", re.compile("^data:image/jpeg"))
    size = picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert size == [SIZE[1], FRAMES_SHOWN * SIZE[0]]
    box = picture.bounding_box()
    assert box
    assert box["width"] / box["height"] == pytest.approx(SIZE[1] / SIZE[0], rel=0.02)
    assert shown_frame(picture) == MIDDLE
    picture.hover()
    expect(picture).to_have_attribute("style", re.compile("object-position: 0px 80%"))
    expect(picture).to_have_attribute("style", re.compile("object-position: 0px 0%"))
    page.locator("h1").hover()
    expect(picture).to_have_attribute("style", re.compile(f"object-position: {MIDDLE}"))
    assert activity.fetched == [url]
    assert activity.messages == []


def test_posters_of_earlier_releases_are_shown(page: Page, sample_data: Path, truth: Truth, tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_sample(root, Root.open(str(sample_data / "shards")), truth, earlier=True)
    page.goto(gallery_at(root, FOLDER_SHARD))
    picture = page.locator("article img").first
    assert picture.evaluate("image => image.decode().then(() => image.naturalHeight)") == SIZE[0]
    picture.hover()
    page.get_by_role("button", name="Details").first.click()
    expect(page.locator("dialog img")).to_be_visible()
    expect(page.get_by_role("button", name="Play the preview")).to_have_count(0)


def test_previews_stay_still_with_reduced_motion(page: Page, sample_root: Root) -> None:
    page.emulate_media(reduced_motion="reduce")
    page.goto(gallery_at(sample_root, FOLDER_SHARD))
    page.locator("article img").first.hover()
    page.locator("article img").first.click()
    player = page.locator("dialog img")
    assert shown_frame(player) == MIDDLE
    page.get_by_role("button", name="Play the preview").click()
    expect(player).to_have_attribute("style", re.compile("object-position: 0px 20%"))
    page.get_by_role("button", name="Stop the preview").click()
    assert shown_frame(player) == MIDDLE


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_page_fits_the_width_of_the_screen(page: Page, sample_root: Root, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(gallery_at(sample_root, FOLDER_SHARD))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_role("button", name="Details").first.click()
    assert page.locator("#details-body").evaluate("body => body.scrollWidth - body.clientWidth") == 0


@pytest.mark.parametrize("width", [360, 1400])
def test_page_of_all_outputs_fits_the_width_of_the_screen(page: Page, tmp_path: Path, width: int) -> None:
    root, car = Root.open(str(tmp_path)), window("car.mp4")
    deep = json.dumps({"x" * 200: {"a": {"b": {"c": ["y" * 200]}}}})
    publish_four(root, [car], attributes=captioned(car, deep))
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(four_gallery_at(root))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_role("button", name="Details").click()
    assert page.locator("#details-body").evaluate("body => body.scrollWidth - body.clientWidth") == 0


@pytest.fixture
def refused_urls(page: Page) -> list[str]:
    """The refused URLs of a store that refuses requests without a signature. The test server itself accepts them."""
    refused: list[str] = []

    def answer(route: Route) -> None:
        if "Signature=" in route.request.url:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.fulfill(status=403)

    page.route(re.compile("^http"), answer)
    return refused


def test_presigned_url_opens_the_page_with_its_previews(
    page: Page, refused_urls: list[str], s3_url: str, sample_data: Path, truth: Truth
) -> None:
    root = Root.open(s3_url)
    publish_sample(root, Root.open(str(sample_data / "shards")), truth)
    url = root.fs.sign(root.full(write_gallery(StoredShard(root, FOLDER_SHARD), DEFAULT)))
    response = page.goto(url)
    assert response
    assert response.headers["content-type"].startswith("text/html")
    expect(page.locator("#count")).to_have_text("13 rows")
    picture = page.locator("article img").first
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == SIZE[1]
    picture.hover()
    expect(picture).to_have_attribute("style", re.compile("object-position: 0px 80%"))
    assert refused_urls == []


def test_corrections_are_shown_and_filtered(page: Page, tmp_path: Path, activity: PageActivity) -> None:
    root = Root.open(str(tmp_path))
    windows = [window("car.mp4"), window("van.mp4"), window("bus.mp4")]
    texts = [captioned(one, "A red car.") for one in windows]
    publish(root, windows, texts, texts)
    earlier = captioned(windows[1], "A white car.")
    rewrite = Correction.of(texts[0], DEFAULT[1], Decision.REWRITE, EVIL, caption="A blue car.")
    for made in (rewrite, Correction.of(earlier, DEFAULT[1], Decision.REJECT, "bob", reason="no van")):
        save_correction(root, SHARD, made)
    page.goto(gallery_at(root))
    car = page.locator("article").first.locator("section").nth(1)
    expect(car.locator("ins")).to_have_text("blue")
    expect(car.locator("del")).to_have_text("red")
    expect(car.locator(".correction")).to_contain_text(f"rewritten by {EVIL}")
    page.get_by_label("Correction").select_option("outdated")
    expect(page.locator("#count")).to_have_text("1 of 3 rows")
    van = page.locator("article .correction")
    expect(van).to_contain_text("no van")
    expect(van).to_contain_text("Decided on the text")
    expect(van.locator("del")).to_have_text("white")
    page.get_by_role("button", name="Details").click()
    expect(page.locator("dialog .correction")).to_contain_text("rejected by bob")
    assert activity.messages == []


def test_link_to_a_clip_shows_its_rows_alone(page: Page, large: str) -> None:
    page.goto(f"{large}#search=camera-0/00007.mp4")
    expect(page.get_by_label("Search")).to_have_value("camera-0/00007.mp4")
    expect(page.locator("#count")).to_have_text("1 of 5,000 rows")
