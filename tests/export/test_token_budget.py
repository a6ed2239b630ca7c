from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]  # comes with transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_assets.export.clip import open_tables
from caption_assets.export.config import BudgetConfig, ExportConfig, OverLimit
from caption_assets.export.selected_clips import select_clips
from caption_assets.export.token_budget import TokenCounter, TokenizerError, open_tokenizer
from caption_assets.models.cache import CacheConfig
from caption_assets.models.tokenizer import find_tokenizer
from caption_assets.models.weights import WeightsError
from caption_assets.store.corrections import Correction, Decision, save_correction
from caption_assets.store.failure_limits import FailureLimit, FailureLimits
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow
from tests.export.shards import LINES, clip, export
from tests.export.tokenizers import KINDS, SENTENCES, bpe_with_ends, byte_level_bpe, save_tokenizer, unigram
from tests.report.windows import FOUR, SHARD, captioned, failed, publish, publish_four

pytestmark = pytest.mark.fast

ANYTHING = FailureLimit(1.0, 0, ("", ""))
NO_LIMITS = FailureLimits(ANYTHING, ANYTHING)
DENSE = "A red car drives along a wet road. It stops at the lights, and two people cross. Then it drives on."
TEXTS = (
    st.text(st.sampled_from("aB,. \n-!?\u3002\u8f66\u8def\u0e01\u0e33\u0301\u200d\U0001f468\U0001f3fd\ufe0f\u05d0"))
    | st.text()
)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root that is also the source."""
    return Root.open(str(tmp_path / "root"))


@cache
def counter(kind: str, limit: int | None = None) -> TokenCounter:
    return TokenCounter(KINDS[kind](), limit)


def budget(folder: Path, over_limit: OverLimit = OverLimit.KEEP, max_tokens: int | None = None) -> BudgetConfig:
    cache = CacheConfig(folder.parent / "cache")
    return BudgetConfig(find_tokenizer(str(folder), None), cache, max_tokens, over_limit)


def clip_like(tmp_path: Path, **config: Any) -> Path:
    return save_tokenizer(tmp_path / "clip", bpe_with_ends(), **config)


@pytest.mark.parametrize(
    ("kind", "special"), [("byte-level BPE", 0), ("BPE with ends", 2), ("Unigram", 1), ("WordPiece", 2)]
)
def test_special_tokens_are_counted(kind: str, special: int) -> None:
    found = counter(kind)
    plain = found.tokenizer.encode(SENTENCES[0], add_special_tokens=False)
    assert found.count(SENTENCES[0]) == len(plain.ids) + special


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path, root: Root) -> None:
    tokenizer = bpe_with_ends()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    found = open_tokenizer(root, budget(save_tokenizer(tmp_path / "clip", tokenizer)))
    assert found.count("a car") == counter("BPE with ends").count("a car") != 8
    assert found.count(SENTENCES[0]) == counter("BPE with ends").count(SENTENCES[0]) > 8


@pytest.mark.parametrize(
    ("config", "max_tokens", "limit"),
    [
        ({"model_max_length": 77}, None, 77),
        ({"model_max_length": 77}, 20, 20),
        ({"model_max_length": 1e30}, None, None),
        ({"model_max_length": 1e30}, 20, 20),
        ({}, None, None),
    ],
)
def test_limit_is_the_settings_or_the_tokenizers(
    tmp_path: Path, root: Root, config: Mapping[str, Any], max_tokens: int | None, limit: int | None
) -> None:
    assert open_tokenizer(root, budget(clip_like(tmp_path, **config), max_tokens=max_tokens)).limit == limit


def test_texts_cannot_be_cut_without_a_limit(tmp_path: Path, root: Root) -> None:
    with pytest.raises(TokenizerError, match="names no maximum length: set CAPTION_EXPORT_MAX_TOKENS"):
        open_tokenizer(root, budget(clip_like(tmp_path), OverLimit.CUT))


def test_text_is_cut_at_the_end_of_a_sentence() -> None:
    found = counter("byte-level BPE")
    limit = found.count(DENSE) - 1
    assert replace(found, limit=limit).cut(DENSE) == DENSE.removesuffix(" Then it drives on.")


def test_text_within_its_first_sentence_is_cut_after_a_word() -> None:
    found = counter("byte-level BPE")
    text = "A red car, which is old, drives on a road"
    limit = found.count("A red car, which")
    assert replace(found, limit=limit).cut(text) == "A red car, which"
    assert replace(found, limit=found.count("A red car,")).cut(text) == "A red car"


def test_chinese_is_cut_at_its_sentences_and_characters() -> None:
    found, text = counter("WordPiece"), SENTENCES[2]
    first = text[: text.index("\u3002") + 1]
    assert replace(found, limit=found.count(text) - 1).cut(text) == first
    assert replace(found, limit=found.count(first[:3])).cut(text) == first[:3]


def test_word_longer_than_the_limit_is_not_cut() -> None:
    assert replace(counter("byte-level BPE"), limit=2).cut("Donaudampfschifffahrt ahead") is None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, limit=st.integers(1, 40))
def test_cut_text_fits_and_is_a_beginning_of_whole_words(kind: str, text: str, limit: int) -> None:
    found = replace(counter(kind), limit=limit)
    cut = found.cut(text)
    if cut is None:
        return
    assert cut
    assert text.startswith(cut)
    assert found.count(cut) <= limit
    graphemes, end = regex.findall(r"\X", text), 0
    ends = {0} | {(end := end + len(grapheme)) for grapheme in graphemes}
    assert len(cut) in ends
    rest = text[len(cut) :]
    assert not rest or not (cut[-1].isascii() and cut[-1].isalnum() and rest[0].isascii() and rest[0].isalnum())
    assert not cut[-1].isspace()


def two(root: Root, *texts: str) -> list[ManifestRow]:
    """Publish windows with a short and a long caption."""
    rows = [row for number in range(len(texts)) for row in clip(root, f"{number}.mp4", b"a car %d" % number)]
    stage2 = [captioned(row, text) for row, text in zip(rows, texts, strict=True)]
    publish(root, rows, [captioned(row, "A red car.") for row in rows], stage2)
    return rows


def texts(root: Root, how: ExportConfig) -> list[tuple[str, str, int | None]]:
    """Text, stage and number of tokens of the exported texts."""
    with open_tables(root, SHARD, how.graph.stages) as tables:
        windows = [window for clip in select_clips(tables, how) for window in clip.windows]
    return [(text.text, text.stage, text.tokens) for window in windows for text in window.texts]


def limited(tmp_path: Path, over_limit: OverLimit, limit: int = 12) -> ExportConfig:
    return replace(LINES, budget=budget(clip_like(tmp_path), over_limit, limit), limits=NO_LIMITS)


def test_tokens_are_a_column_and_are_tallied(tmp_path: Path, root: Root) -> None:
    two(root, DENSE, "A car.")
    how, count = limited(tmp_path, OverLimit.KEEP), counter("BPE with ends").count
    assert texts(root, how) == [
        (DENSE, "stage2_captions", count(DENSE)),
        ("A car.", "stage2_captions", count("A car.")),
    ]
    assert export(root, how).index.tokens == {
        "texts": 2,
        "over_limit": 1,
        "dropped": 0,
        "tokens": count(DENSE) + count("A car."),
        "longest": count(DENSE),
        "limit": 12,
    }


def test_text_over_the_limit_is_cut(tmp_path: Path, root: Root) -> None:
    two(root, DENSE, "A car.")
    how = limited(tmp_path, OverLimit.CUT, 30)
    (cut, _, tokens), (other, _, _) = texts(root, how)
    assert (DENSE.startswith(cut), cut[-1], other) == (True, ".", "A car.")
    assert tokens == counter("BPE with ends").count(cut) <= 30
    assert export(root, how).index.tokens["over_limit"] == 1


def test_text_over_the_limit_is_left_out_and_counted(tmp_path: Path, root: Root) -> None:
    two(root, DENSE, "A car.")
    how = limited(tmp_path, OverLimit.LEAVE_OUT)
    assert [text for text, _, _ in texts(root, how)] == ["A car."]
    assert export(root, how).index.left_out == {"over_token_limit": 1}


def test_text_over_the_limit_is_replaced_by_the_longest_that_fits(tmp_path: Path, root: Root) -> None:
    two(root, DENSE)
    assert texts(root, limited(tmp_path, OverLimit.SHORTER)) == [
        ("A red car.", "stage1_captions", counter("BPE with ends").count("A red car."))
    ]


def test_text_is_cut_if_no_shorter_one_is_good(tmp_path: Path, root: Root) -> None:
    rows = two(root, DENSE)
    flagged = [captioned(row, "A red car.", flags=["repetition"]) for row in rows]
    publish(root, rows, flagged, [captioned(row, DENSE) for row in rows])
    [(text, stage, _)] = texts(root, limited(tmp_path, OverLimit.SHORTER, 30))
    assert (stage, DENSE.startswith(text)) == ("stage2_captions", True)


def test_shorter_text_that_is_trained_on_already_gets_both_weights(tmp_path: Path, root: Root) -> None:
    two(root, DENSE)
    how = replace(limited(tmp_path, OverLimit.SHORTER), texts={"stage1_captions": 1.0, "stage2_captions": 3.0})
    assert [(text, stage) for text, stage, _ in texts(root, how)] == [("A red car.", "stage1_captions")]


def test_json_is_never_cut(tmp_path: Path, root: Root) -> None:
    [row] = clip(root, "car.mp4", b"a car")
    publish_four(root, [row])
    how = replace(limited(tmp_path, OverLimit.CUT, 8), graph=FOUR, texts={"attributes": 1.0})
    assert export(root, how).index.left_out == {"over_token_limit": 1}


def test_failed_stage_is_no_shorter_text(tmp_path: Path, root: Root) -> None:
    rows = two(root, DENSE)
    publish(root, rows, [failed(row) for row in rows], [captioned(row, DENSE) for row in rows])
    [(text, stage, _)] = texts(root, replace(limited(tmp_path, OverLimit.SHORTER, 30), where="true"))
    assert (stage, DENSE.startswith(text)) == ("stage2_captions", True)


def test_rejected_caption_is_no_shorter_text(tmp_path: Path, root: Root) -> None:
    [row] = two(root, DENSE)
    save_correction(root, SHARD, Correction.of(captioned(row, "A red car."), "stage1_captions", Decision.REJECT, "ann"))
    [(_, stage, _)] = texts(root, limited(tmp_path, OverLimit.SHORTER, 30))
    assert stage == "stage2_captions"


def test_another_tokenizer_in_the_folder_is_used_at_once(tmp_path: Path, root: Root) -> None:
    two(root, "A red car drives.")
    how = limited(tmp_path, OverLimit.KEEP)
    [(_, _, before)] = texts(root, how)
    save_tokenizer(tmp_path / "clip", unigram())
    [(_, _, after)] = texts(root, how)
    assert (before, after) == (
        counter("BPE with ends").count("A red car drives."),
        counter("Unigram").count("A red car drives."),
    )


def test_file_that_is_no_tokenizer_is_an_error(tmp_path: Path, root: Root) -> None:
    folder = clip_like(tmp_path)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(TokenizerError, match=r"cannot load .*tokenizer\.json .*: write it again with save_pretrained"):
        open_tokenizer(root, budget(folder))


def test_folder_without_tokenizer_json_names_the_remedy(tmp_path: Path, root: Root) -> None:
    folder = clip_like(tmp_path)
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json: write it with AutoTokenizer"):
        open_tokenizer(root, budget(folder))


def test_qwen_like_tokenizer_round_trips(tmp_path: Path, root: Root) -> None:
    folder = save_tokenizer(tmp_path / "qwen", byte_level_bpe(), model_max_length=131_072)
    assert open_tokenizer(root, budget(folder)).limit == 131_072
