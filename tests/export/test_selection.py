from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from caption_assets.captioning.quality import REGENERATED
from caption_assets.captioning.recipe_file import built_in
from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.index import ExportIndex
from caption_assets.store.corrections import Correction, Decision, save_corrections
from caption_assets.store.failure_limits import FailureLimit, FailureLimits
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow
from tests.export.shards import LINES, clip, export, lines, publish_captioned
from tests.report.windows import FOUR, SHARD, captioned, failed, publish, publish_four

pytestmark = pytest.mark.fast

ANY = FailureLimit(1.0, 0, ("", ""))
EXPORT = replace(LINES, limits=FailureLimits(ANY, ANY))
FOUR_LINES = ExportConfig(Format.JSONL, 1 << 30, FOUR, limits=FailureLimits(ANY, ANY), texts={"dense_captions": 1.0})


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root that is also the source."""
    return Root.open(str(tmp_path))


def clips(root: Root, *names: str) -> list[ManifestRow]:
    return [row for name in names for row in clip(root, f"{name}.mp4", name.encode())]


def exported(root: Root, how: ExportConfig) -> tuple[list[str], Mapping[str, int]]:
    """The names of the exported clips, and the reasons of the others."""
    index: ExportIndex = export(root, how).index
    return [line["clip_key"].removesuffix(".mp4") for line in lines(root)], index.left_out


def publish_texts(root: Root, rows: list[ManifestRow], stage1: list[CaptionRow], stage2: list[CaptionRow]) -> None:
    publish(root, rows, stage1, stage2)


def test_caption_with_a_flag_that_regenerates_is_left_out_by_its_first_flag(root: Root) -> None:
    rows = clips(root, "good", "looped", "meta")
    flags = [(), ("near_duplicate", "repetition", "cut_off"), ("meta", "near_duplicate")]
    publish_texts(
        root,
        rows,
        [captioned(row, "A car.") for row in rows],
        [captioned(row, "A red car.", flags=one) for row, one in zip(rows, flags, strict=True)],
    )
    assert exported(root, EXPORT) == (["good", "meta"], {"flagged: repetition": 1})
    assert {"repetition", "cut_off"} <= REGENERATED


def test_flag_of_a_stage_that_is_not_trained_on_does_not_count(root: Root) -> None:
    rows = clips(root, "car")
    publish_texts(root, rows, [captioned(rows[0], "A car.", flags=["refusal"])], [captioned(rows[0], "A red car.")])
    assert exported(root, EXPORT) == (["car"], {})
    both = replace(EXPORT, texts={"stage1_captions": 1.0, "stage2_captions": 2.0})
    assert exported(root, both) == ([], {"flagged: refusal": 1})


def test_condition_replaces_the_rule_of_flags_and_counts_what_it_leaves_out(root: Root) -> None:
    rows = clips(root, "car", "van", "bus")
    publish_texts(
        root,
        [replace(row, width=width) for row, width in zip(rows, (100, 200, 300), strict=True)],
        [captioned(row, "A car.") for row in rows],
        [captioned(row, "A red car.", flags=["repetition"]) for row in rows],
    )
    assert exported(root, replace(EXPORT, where="width >= 200")) == (["van", "bus"], {"where": 1})


def test_condition_decides_on_failures_of_stages_that_are_not_trained_on(root: Root) -> None:
    rows = clips(root, "car")
    publish_four(root, rows, alignment=failed(rows[0]))
    assert exported(root, FOUR_LINES) == ([], {"alignment: engine": 1})
    assert exported(root, replace(FOUR_LINES, where="attributes.status = 'ok'")) == (["car"], {})
    assert exported(root, replace(FOUR_LINES, where="alignment.score > 0.5")) == ([], {"where": 1})
    [line] = (export(root, replace(FOUR_LINES, where="true")), lines(root))[1]
    assert (line["alignment_choice"], line["alignment_score"]) == (None, None)


def test_condition_cannot_select_a_window_without_its_text(root: Root) -> None:
    rows = clips(root, "car")
    publish_four(root, rows, dense_captions=failed(rows[0]), alignment=failed(rows[0], "upstream_failed"))
    assert exported(root, replace(FOUR_LINES, where="true")) == ([], {"dense_captions: engine": 1})


def test_accepted_caption_is_exempt_from_the_rule_of_flags_until_its_text_changes(root: Root) -> None:
    rows = clips(root, "car", "van")
    stage2 = [captioned(row, "A red car.", flags=["repetition"]) for row in rows]
    publish_texts(root, rows, [captioned(row, "A car.") for row in rows], stage2)
    accepted = [stage2[0], replace(stage2[1], caption="An earlier text.")]
    save_corrections(root, SHARD, [Correction.of(row, "stage2_captions", Decision.ACCEPT, "me") for row in accepted])
    assert exported(root, EXPORT) == (["car"], {"flagged: repetition": 1})


def test_rewritten_caption_needs_no_success_and_has_no_flags(root: Root) -> None:
    rows = clips(root, "car", "van")
    stage2 = [captioned(rows[0], "A red car.", flags=["repetition"]), failed(rows[1])]
    publish_texts(root, rows, [captioned(row, "A car.") for row in rows], stage2)
    rewrites = [Correction.of(row, "stage2_captions", Decision.REWRITE, "me", caption="A van.") for row in stage2]
    save_corrections(root, SHARD, rewrites)
    assert exported(root, EXPORT) == (["car", "van"], {})
    name = "stage2_captions"
    where = f"{name}.status = 'ok' and not list_contains({name}.flags, 'repetition') and {name}.error is null"
    assert exported(root, replace(EXPORT, where=where)) == (["car", "van"], {})


def test_another_condition_makes_the_dataset_stale_but_keeps_equal_files(root: Root) -> None:
    publish_captioned(root, clips(root, "car"))
    other = replace(EXPORT, where="true")
    assert other.code_version != EXPORT.code_version
    first = export(root, EXPORT)
    assert export(root, other) == replace(first, written=False)


def test_graph_of_the_default_recipe_trains_on_its_last_text() -> None:
    assert dict(ExportConfig(Format.JSONL, 1, built_in("general")).text_weights) == {"stage2_captions": 1.0}
