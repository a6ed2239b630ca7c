"""Lines with the columns of trainers.

Sources of the schemas: LTX-2 packages/ltx-trainer/docs/dataset-preparation.md; VideoX-Fun
videox_fun/data/dataset_image_video.py; FastVideo docs/training/data_preprocess.md and
fastvideo/workflow/preprocess/components.py; Open-Sora docs/train.md and scripts/cnv/meta.py; musubi-tuner
docs/dataset_config.md and src/musubi_tuner/dataset/datasources.py.
"""

import csv
import json
import posixpath
from dataclasses import replace
from io import BytesIO, StringIO

import pytest

from caption_assets.errors import CaptionAssetsError
from caption_assets.export.clip import CaptionedClip, TrainingText
from caption_assets.export.config import CutConfig, Format
from caption_assets.export.formats import layout_of
from caption_assets.export.formats.column_map import UnknownColumn
from caption_assets.export.formats.layout import EncodedSample, SharedVideo
from tests.export.formats.clips import EXACT, TEXT, clip_of, export_of, lines_of, records_of, video_of

pytestmark = pytest.mark.fast

CLIP = clip_of(video_of("aa"), video_of("bb", frames=80, seconds=3.2))
PATH = "data/shard=shard/aa.mp4"


def rows_of(format: Format, **changes: object) -> list[dict[str, str]]:
    """The rows of a CSV file, as ``csv.DictReader`` gives them to a trainer."""
    layout = layout_of(export_of(format, EXACT, **changes))
    file = BytesIO()
    assert layout.write(file, [EncodedSample("key", line) for line in lines_of(layout, CLIP)]) == 2
    return list(csv.DictReader(StringIO(file.getvalue().decode())))


def test_ltx_has_video_and_caption() -> None:
    assert records_of(export_of(Format.LTX), CLIP)[0] == {"video": PATH, "caption": TEXT}


def test_musubi_has_full_paths() -> None:
    found = records_of(export_of(Format.MUSUBI, folder="/data/captioned_dataset"), CLIP)[0]
    assert found == {"video_path": f"/data/captioned_dataset/{PATH}", "caption": TEXT}


def test_fastvideo_has_what_its_validator_needs() -> None:
    found = records_of(export_of(Format.FASTVIDEO, folder="/data"), CLIP)[1]
    assert posixpath.join("/data/videos", found.pop("path")) == "/data/data/shard=shard/bb.mp4"
    assert found == {
        "cap": TEXT,
        "resolution": {"width": 640, "height": 480},
        "fps": 25.0,
        "duration": 3.2,
        "num_frames": 80,
    }


def test_videox_fun_says_that_each_file_is_a_video() -> None:
    assert rows_of(Format.VIDEOX_FUN)[0] == {
        "file_path": PATH,
        "text": "A red car turns left. It stops.",
        "type": "video",
    }


def test_open_sora_has_the_numbers_of_its_buckets() -> None:
    [row, _] = rows_of(Format.OPEN_SORA)
    assert list(row) == ["path", "text", "num_frames", "height", "width", "aspect_ratio", "resolution", "fps"]
    assert [float(value) for value in list(row.values())[2:]] == [100, 480, 640, 0.75, 640 * 480, 25]


def test_csv_has_the_video_file_or_the_location_of_the_clip() -> None:
    assert rows_of(Format.CSV)[1]["video"] == "data/shard=shard/bb.mp4"
    columns = layout_of(export_of(Format.CSV)).columns[0][1]
    assert [column.name for column in columns[-2:]] == ["uri", "offset"]


def test_lines_of_a_text_are_joined_in_csv_only() -> None:
    assert rows_of(Format.CSV)[0]["caption"] == "A red car turns left. It stops."
    assert records_of(export_of(Format.JSONL, EXACT), CLIP)[0]["caption"] == TEXT


def test_names_of_clips_are_unchanged_in_csv() -> None:
    name = 'shard/a  "red"\ncar, 車.mp4'
    [window] = clip_of(None).windows
    row = replace(window.row, clip_key=name, uri=name)
    clip = CaptionedClip("shard", row, (replace(window, row=row),), ())
    layout = layout_of(export_of(Format.CSV, columns={"file": "uri", "key": "clip_key", "text": "caption"}))
    file = BytesIO()
    layout.write(file, [EncodedSample("key", line) for line in lines_of(layout, clip)])
    [line] = csv.DictReader(StringIO(file.getvalue().decode(), newline=""))
    assert line == {"file": name, "key": name, "text": "A red car turns left. It stops."}


@pytest.mark.parametrize("format", [Format.JSONL, Format.CSV])
def test_columns_can_be_chosen(format: Format) -> None:
    columns = {"path": "video", "cap": "caption", "kind": {"const": "clip"}, "size": {"w": "video_width"}}
    export = export_of(format, EXACT, columns=columns)
    if format is Format.CSV:
        [row, _] = rows_of(format, columns=columns)
        assert (row["path"], row["kind"], json.loads(row["size"])) == (PATH, "clip", {"w": 640})
    else:
        [found, _] = records_of(export, CLIP)
        assert found == {"path": PATH, "cap": TEXT, "kind": "clip", "size": {"w": 640}}
    assert [column.name for column in layout_of(export).columns[0][1]] == list(columns)


def test_unknown_column_is_an_error_with_near_ones() -> None:
    with pytest.raises(UnknownColumn, match=r"Unknown column 'captoin' for 'text' .*did you mean caption or "):
        layout_of(export_of(Format.CSV, EXACT, columns={"text": "captoin"}))


def test_column_of_a_file_needs_cut_windows() -> None:
    with pytest.raises(UnknownColumn, match=r"'video' for 'path' .* not cut: set CAPTION_EXPORT_CUT=exact"):
        layout_of(export_of(Format.CSV, columns={"path": "video"}))


def test_constant_without_its_key_is_an_error() -> None:
    with pytest.raises(CaptionAssetsError, match=r'has 5 for \'fps\': .* \{"const": 5\} for a constant'):
        layout_of(export_of(Format.JSONL, EXACT, columns={"fps": 5}))


def test_text_is_drawn_by_the_weights_and_stays_the_same() -> None:
    texts = (TrainingText("stage1_captions", "short", 1.0), TrainingText("stage2_captions", "long", 3.0))
    export = export_of(Format.JSONL, EXACT)
    windows = clip_of(*[video_of(f"{number}") for number in range(400)], texts=texts)
    found = [record["caption"] for record in records_of(export, windows)]
    assert found == [record["caption"] for record in records_of(export, windows)]
    assert 0.68 < found.count("long") / len(found) < 0.82


def test_token_count_is_a_column() -> None:
    clip = clip_of(video_of("aa"), texts=(TrainingText("stage2_captions", "A car.", tokens=3),))
    assert records_of(export_of(Format.JSONL, EXACT), clip)[0]["caption_tokens"] == 3


@pytest.mark.parametrize("format", [Format.LTX, Format.VIDEOX_FUN, Format.FASTVIDEO, Format.OPEN_SORA, Format.MUSUBI])
def test_two_windows_of_one_file_are_an_error_because_trainers_read_its_beginning(format: Format) -> None:
    with pytest.raises(SharedVideo, match=r"'car.mp4' has 2 windows, .* set CAPTION_EXPORT_CUT=exact"):
        records_of(export_of(format, CutConfig()), clip_of(video_of("aa"), video_of("aa")))
