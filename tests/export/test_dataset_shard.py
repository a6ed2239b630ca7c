import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from caption_assets.captioning.stages import Stage
from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.dataset_shard import ExportError
from caption_assets.export.index import find_index, shard_folder
from caption_assets.store.content_tag import ContentTag
from caption_assets.store.failure import StoreError
from caption_assets.store.failure_limits import FailureLimit, FailureLimits
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, TableError, publish_manifest
from tests.export.shards import LINES, TARS, clip, export, lines, names, publish_captioned, samples, tars
from tests.report.windows import (
    FOUR,
    SHARD,
    broken,
    captioned,
    failed,
    four_captions,
    publish,
    publish_four,
    publish_stage,
    window,
)
from tests.stages import STAGE1, STAGE2

INDEX = "index.json"
ANYTHING = FailureLimit(1.0, 0, ("", ""))
NO_LIMITS = FailureLimits(ANYTHING, ANYTHING)
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """A root that is also the source, on the local disk and on an S3 API."""
    return Root.open(str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_url"))


def test_tar_contains_a_clip_once_with_all_its_windows(root: Root) -> None:
    publish_captioned(root, clip(root, "car.mp4", b"a car", windows=2), clip(root, "van.mp4", b"a van"))
    index = export(root).index
    assert (index.clips, index.windows, index.samples, index.left_out) == (2, 3, 2, {})
    (car, video), (van, _) = samples(root)
    assert video == b"a car"
    assert (car["shard"], car["clip_key"], van["clip_key"]) == (SHARD, "car.mp4", "van.mp4")
    assert [(one["window_index"], one["start_seconds"], one["stage2_caption"]) for one in car["windows"]] == [
        (0, 0.0, "Stage 2 of car.mp4, window 0."),
        (1, 4.0, "Stage 2 of car.mp4, window 1."),
    ]
    assert car["windows"][0]["stage1_caption"] == "Stage 1 of car.mp4, window 0."


def test_line_contains_its_window_and_the_clips_location(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car", windows=2)
    publish_captioned(root, rows)
    assert export(root, LINES).index.samples == 2
    first, second = lines(root)
    assert (first["window_index"], second["window_index"]) == (0, 1)
    assert (first["uri"], first["offset"], first["bytes"]) == (rows[0].uri, 0, 5)
    assert second["stage2_caption"] == "Stage 2 of car.mp4, window 1."


@pytest.mark.parametrize("how", [TARS, LINES])
def test_windows_without_both_captions_are_left_out_and_counted(root: Root, how: ExportConfig) -> None:
    car, van = clip(root, "car.mp4", b"a car", windows=3), clip(root, "van.mp4", b"a van")
    torn = broken("torn.mp4")
    rows = [*car, *van, torn]
    stage1 = [captioned(car[0], "A car."), failed(car[1]), captioned(car[2], "A car."), failed(van[0]), failed(torn)]
    stage2 = [captioned(car[0], "A red car."), *(failed(row, "stage1_failed") for row in rows[1:])]
    publish(root, rows, stage1, stage2)
    index = export(root, replace(how, limits=NO_LIMITS)).index
    assert (index.clips, index.windows, index.samples) == (1, 1, 1)
    assert index.left_out == {
        "stage1_captions: engine": 2,
        "stage2_captions: stage1_failed": 1,
        "clip_manifest: unreadable": 1,
    }


def test_equal_texts_are_limited_over_shards(root: Root) -> None:
    rows = [row for number in range(8) for row in clip(root, f"{number}.mp4", b"a car %d" % number)]
    for shard, part in (("one", rows[:4]), ("two", rows[4:])):
        texts = [captioned(row, "A car.") for row in part]
        publish(root, part, texts, texts, shard=shard)
    how = replace(LINES, max_duplicates=2)
    indexes = [export(root, how, shard).index for shard in ("one", "two")]
    assert [index.windows + index.left_out["duplicate"] for index in indexes] == [4, 4]
    assert sum(index.windows for index in indexes) < 6


def test_shard_without_captions_has_no_files(root: Root) -> None:
    torn = broken("torn.mp4")
    publish(root, [torn], [failed(torn)], [failed(torn)])
    assert export(root, replace(TARS, limits=NO_LIMITS)).index.files == ()
    assert names(root) == [INDEX]


def test_files_are_split_at_the_limit_and_a_larger_clip_gets_its_own(root: Root) -> None:
    sizes = [10_000, 10_000, 90_000, 10_000, 10_000, 10_000]
    publish_captioned(root, *(clip(root, f"{number}.mp4", bytes([number]) * size) for number, size in enumerate(sizes)))
    index = export(root, replace(TARS, file_bytes=35_000)).index
    assert [len(tar) // 2 for tar in tars(root)] == [2, 1, 3] == [file.samples for file in index.files]
    assert [file.name for file in index.files] == [f"{index.version}-{number:05}.tar" for number in range(3)]
    assert [record["clip_key"] for record, _ in samples(root)] == [f"{number}.mp4" for number in range(6)]


def test_export_is_reproducible(root: Root) -> None:
    publish_captioned(root, clip(root, "car.mp4", b"a car"))
    first = export(root).index
    content = tars(root), root.read(f"{shard_folder(SHARD)}/{first.files[0].name}")
    root.remove(f"{shard_folder(SHARD)}/{INDEX}")
    publish_captioned(root, clip(root, "car.mp4", b"a car"), attempts=3, prompt_tokens=17)
    again = export(root)
    assert again.written
    assert again.index == first
    assert (tars(root), root.read(f"{shard_folder(SHARD)}/{first.files[0].name}")) == content


def test_repeated_export_writes_nothing(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car")
    publish_captioned(root, rows)
    first = export(root)
    root.remove(rows[0].uri)  # the clips are not read
    assert replace(first, written=False) == export(root)


def test_missing_file_is_written_again(root: Root) -> None:
    publish_captioned(root, clip(root, "car.mp4", b"a car"))
    first = export(root)
    root.remove(f"{shard_folder(SHARD)}/{first.index.files[0].name}")
    assert export(root) == first
    assert len(samples(root)) == 1


def test_changed_caption_replaces_only_the_shards_files(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car")
    for shard in ("one", "two"):
        publish_captioned(root, rows, shard=shard)
    before = [export(root, shard=shard).index for shard in ("one", "two")]
    publish_captioned(root, rows, shard="one", flags=("meta",))
    after = export(root, shard="one").index
    assert after.version != before[0].version
    assert names(root, "one") == [after.files[0].name, INDEX]
    assert find_index(root, "two") == before[1]
    assert len(samples(root, "two")) == 1


def test_another_format_replaces_the_files(root: Root) -> None:
    publish_captioned(root, clip(root, "car.mp4", b"a car"))
    export(root)
    index = export(root, LINES).index
    assert names(root) == [index.files[0].name, INDEX]


def test_text_files_of_an_export_that_ended_among_them_are_written_again(root: Root) -> None:
    if not root.is_local:
        pytest.skip("a folder in the way of a file ends the export on the local disk only")
    clips = [clip(root, f"{name}.mp4", name.encode(), width=64, height=48) for name in ("a", "b", "c")]
    pairs = replace(LINES, format=Format.PAIRS)
    publish_captioned(root, *clips)
    index = export(root, pairs).index
    texts = [file.name for file in index.files if file.name.endswith(".txt")]
    before = [root.read(f"{shard_folder(SHARD)}/{name}") for name in texts]
    rows = [row for one in clips for row in one]
    other = [captioned(row, f"Other 2 of {row.clip_key}, window {row.window_index}.") for row in rows]
    publish_stage(root, STAGE2, other)
    blocked = f"{shard_folder(SHARD)}/{texts[-1]}"
    root.remove(blocked)
    Path(root.full(blocked)).mkdir()
    with pytest.raises(StoreError):
        export(root, pairs)
    Path(root.full(blocked)).rmdir()
    root.write(blocked, before[-1])
    publish_captioned(root, *clips)
    assert export(root, pairs).index == index
    assert [root.read(f"{shard_folder(SHARD)}/{name}") for name in texts] == before


def test_export_removes_surplus_files(root: Root) -> None:
    publish_captioned(root, *(clip(root, f"{number}.mp4", bytes(10 + number)) for number in range(3)))
    export(root, replace(TARS, file_bytes=1))
    assert len(names(root)) == 4
    export(root)
    assert len(names(root)) == 2


def test_files_of_a_killed_export_are_removed_by_the_next(root: Root) -> None:
    publish_captioned(root, clip(root, "car.mp4", b"a car"))
    root.write(f"{shard_folder(SHARD)}/0123456789abcdef-00000.tar", b"complete, but of a killed export")
    export(root)
    assert len(names(root)) == 2


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_changed_clip_fails_the_export_and_keeps_the_earlier_one(root: Root, change: str) -> None:
    car, van = clip(root, "car.mp4", b"a car"), clip(root, "van.mp4", b"a van")
    publish_captioned(root, car, van)
    before, files = export(root, replace(TARS, file_bytes=1)).index, names(root)
    publish_captioned(root, car, van, flags=("meta",))
    if change == "gone":
        root.remove(van[0].uri)
    else:
        root.write(van[0].uri, b"A VAN")
    with pytest.raises(ExportError, match=r"clip 'van\.mp4' (was deleted|has changed).*materialize"):
        export(root, replace(TARS, file_bytes=1))
    assert (find_index(root, SHARD), names(root)) == (before, files)


def test_tables_older_than_the_manifest_are_an_error(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car", windows=2)
    publish_captioned(root, rows)
    publish_manifest(root, SHARD, rows[:1], {})
    with pytest.raises(TableError, match="stage1_captions of shard 'shard' is older than its clip_manifest"):
        export(root)
    publish_captioned(root, rows)
    republish(root, STAGE2, rows[:1])
    with pytest.raises(TableError, match="stage2_captions of shard 'shard' is older than its clip_manifest"):
        export(root)


def test_stage_2_older_than_stage_1_is_an_error(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car")
    publish_captioned(root, rows)
    republish(root, STAGE1, rows, fingerprint="new")
    with pytest.raises(TableError, match="stage2_captions of shard 'shard' is older than its stage1_captions"):
        export(root)


def test_missing_table_is_an_error_with_a_remedy(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car")
    publish(root, rows, [captioned(row, "A car.") for row in rows])
    with pytest.raises(TableError, match="materialize stage2_captions for shard 'shard' first"):
        export(root)


def test_clip_within_a_tar_is_extracted(root: Root) -> None:
    root.write("shard.tar", b"header, a car, padding")
    row = window("car.mp4", uri="shard.tar", offset=8, bytes=5, content_tag=ContentTag(b"a car").hexdigest())
    publish_captioned(root, [row])
    export(root)
    [(_, video)] = samples(root)
    assert video == b"a car"


def republish(root: Root, stage: Stage, rows: list[ManifestRow], **changes: object) -> None:
    publish_stage(root, stage, [captioned(row, "A car.", **changes) for row in rows])


@pytest.mark.parametrize("how", [replace(TARS, graph=FOUR), replace(LINES, graph=FOUR)])
def test_all_stages_of_the_recipe_are_columns(root: Root, how: ExportConfig) -> None:
    publish_four(root, clip(root, "car.mp4", b"a car"))
    export(root, how)
    [record] = lines(root) or samples(root)[0][0]["windows"]
    assert record["short_caption"] == "A car."
    assert record["dense_caption"] == "A red car."
    assert record["attributes_fields"] == {"subjects": ["a car", "a man"], "camera": {"motion": "static", "shots": 1}}
    assert [record[f"alignment_{name}"] for name in ("choice", "probability", "score")] == ["yes", 0.9, 0.9]


@pytest.mark.parametrize("need", ["short", "dense_captions"])
def test_stage_older_than_any_needed_stage_is_an_error(root: Root, need: str) -> None:
    rows = clip(root, "car.mp4", b"a car")
    outdated = replace(
        four_captions(rows[0])["alignment"],
        upstream_fingerprints={"short": "s", "dense_captions": "d", need: "old"},
    )
    publish_four(root, rows, alignment=outdated)
    with pytest.raises(TableError, match=f"alignment of shard 'shard' is older than its {need}: materialize alignment"):
        export(root, replace(LINES, graph=FOUR))


def test_table_of_another_output_is_an_error(root: Root) -> None:
    rows = clip(root, "car.mp4", b"a car")
    publish_four(root, rows)
    text = Stage("attributes", "Describe the video.")
    publish_stage(root, text, [captioned(row, "A car.") for row in rows])
    with pytest.raises(TableError, match=r"lacks the columns fields, .* another output: materialize attributes"):
        export(root, replace(LINES, graph=FOUR))


def test_tables_of_schema_version_2_are_exported_alike(tmp_path: Path) -> None:
    """The fixture is the other root, as the last release with version 2 published it."""
    indexes = []
    for name in ("root_schema_version_2", "root_before_window_job"):
        root = Root.open(str(shutil.copytree(FIXTURES / name, tmp_path / name)))
        indexes.append(export(root, LINES).index)
    assert indexes[0] == indexes[1]
    assert indexes[0].windows == 5
