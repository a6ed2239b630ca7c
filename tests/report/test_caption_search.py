from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caption_assets.report.caption_search import CaptionSearch, SearchError, search_terms
from caption_assets.store.root import Root
from tests.report.windows import FOUR, captioned, failed, publish, publish_four, window
from tests.stages import STAGES

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = [stage.name for stage in STAGES]
TEXTS = ("A red car.", "A CAR's wheel: 100% (real).", "A van.", "\u00c9ine \u7ea2\u8272\u7684\u8f66")


def publish_texts(root: Root) -> None:
    """Publish two shards with equal captions, one with a row that failed."""
    rows = [window(f"{number}.mp4") for number in range(len(TEXTS))]
    answers = [captioned(row, text) for row, text in zip(rows, TEXTS, strict=True)]
    broken = window("broken.mp4")
    publish(root, [*rows, broken], [*answers, failed(broken, error="a red failure")], shard="a")
    publish(root, rows, answers, answers, shard="b=2")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root.open(str(tmp_path))
    publish_texts(root)
    return root


def found(root: Root, query: str, limit: int = 100) -> list[tuple[str, str, str]]:
    hits = CaptionSearch(root, NAMES).find(query, limit).hits
    return [(hit.shard, hit.stage, hit.caption) for hit in hits]


@pytest.mark.fast
def test_captions_of_all_shards_and_stages_are_found(root: Root) -> None:
    red = TEXTS[0]
    assert found(root, "red") == [("a", "stage 1", red), ("b=2", "stage 1", red), ("b=2", "stage 2", red)]
    [hit] = CaptionSearch(root, NAMES).find("red", 1).hits
    assert (hit.clip, hit.position) == ("0.mp4", "window 0, 0:00.0 to 0:04.0")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("query", "texts"),
    [
        ("car", [0, 1]),
        ("CAR red", [0]),
        ('"red car"', [0]),
        ('"car red"', []),
        ("\u00e9INE", [3]),
        ("\u8272\u7684", [3]),
        ("100%", [1]),
        ("(real).", [1]),
        (".*", []),
        ("a%car", []),
        ("' or 1=1 --", []),
        ("failure", []),
    ],
)
def test_words_and_phrases_are_literal_and_ignore_case(root: Root, query: str, texts: list[int]) -> None:
    assert [text for shard, _, text in found(root, query) if shard == "a"] == [TEXTS[number] for number in texts]


@pytest.mark.fast
def test_search_ends_at_its_limit(root: Root) -> None:
    search = CaptionSearch(root, NAMES)
    assert [len(search.find("a", limit).hits) for limit in (1, 3, 100)] == [1, 3, 9]
    assert [search.find("a", limit).has_more for limit in (1, 8, 9)] == [True, True, False]


@pytest.mark.fast
@pytest.mark.parametrize(("query", "message"), [(" ", "no words"), ('""', "no words"), ("x" * 201, "more than 200")])
def test_query_without_words_is_an_error(query: str, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        search_terms(query)


@pytest.mark.fast
@pytest.mark.parametrize("damage", [b"", b"damaged", b"PAR1 damaged PAR1"])
def test_damaged_table_does_not_stop_the_search(root: Root, damage: bytes) -> None:
    root.write("stage1_captions/shard=a0/captions.parquet", damage or b"\0")
    result = CaptionSearch(root, NAMES).find("red")
    assert len(result.hits) == 3
    assert result.unsearched == 1


@pytest.mark.fast
def test_tables_of_earlier_releases_are_searched(tmp_path: Path) -> None:
    root = Root.open(str(shutil.copytree(FIXTURES / "root_before_window_job", tmp_path / "root")))  # no column shard
    result = CaptionSearch(root, NAMES).find("yellow")
    assert {hit.shard for hit in result.hits} == {"shard"}
    assert result.unsearched == 0
    publish_texts(root)
    assert {hit.shard for hit in CaptionSearch(root, NAMES).find("a").hits} == {"a", "b=2", "shard"}


@pytest.mark.fast
def test_choices_are_not_searched(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, [window("car.mp4")])
    hits = CaptionSearch(root, [stage.name for stage in FOUR.stages]).find("e").hits
    assert [hit.stage for hit in hits] == ["dense", "attributes"]


@pytest.mark.fast
def test_root_without_tables_has_no_hits(tmp_path: Path) -> None:
    assert found(Root.open(str(tmp_path)), "car") == []


@pytest.mark.store
def test_captions_in_object_storage_are_found(s3_url: str) -> None:
    root = Root.open(s3_url)
    publish_texts(root)
    root.write("stage1_captions/shard=damaged/captions.parquet", b"damaged")
    result = CaptionSearch(root, NAMES).find("red")
    assert [(hit.shard, hit.stage) for hit in result.hits] == [("a", "stage 1"), ("b=2", "stage 1"), ("b=2", "stage 2")]
    assert result.unsearched == 1
