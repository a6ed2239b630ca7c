"""Lines for Cosmos. Source: docs/dataset_jsonl.md and sft_dataset.py of NVIDIA/cosmos-framework."""

from dataclasses import replace

import pytest

from caption_assets.export.clip import TrainingText
from caption_assets.export.config import Format
from caption_assets.export.formats.cosmos import TOO_LONG, TOO_SHORT, cosmos_limits
from tests.export.formats.clips import EXACT, TEXT, clip_of, export_of, records_of, video_of
from tests.report.windows import FOUR

pytestmark = pytest.mark.fast


def test_windows_of_a_clip_are_one_line_and_include_their_last_frame() -> None:
    video = video_of("aa", frames=250, seconds=10.0)
    [found] = records_of(export_of(Format.COSMOS), clip_of(video, video))
    assert len(found.pop("uuid")) == 24
    assert found == {
        "duration": 10.0,
        "width": 640,
        "height": 480,
        "nb_frames": 250,
        "framerate": 25.0,
        "vision_path": "data/shard=shard/aa.mp4",
        "t2w_windows": [
            {"start_frame": 0, "end_frame": 99, "temporal_interval": 1, "caption": TEXT},
            {"start_frame": 100, "end_frame": 199, "temporal_interval": 1, "caption": TEXT},
        ],
    }


def test_cut_windows_are_lines_of_their_own_from_frame_0() -> None:
    found = records_of(export_of(Format.COSMOS, EXACT), clip_of(video_of("aa"), video_of("bb")))
    assert [window for line in found for window in line["t2w_windows"]] == [
        {"start_frame": 0, "end_frame": 99, "temporal_interval": 1, "caption": TEXT}
    ] * 2
    assert len({line["uuid"] for line in found}) == 2


def test_text_of_a_stage_with_json_is_an_object() -> None:
    clip = clip_of(video_of("aa"), texts=(TrainingText("attributes", '{"subjects": ["a car"]}'),))
    export = replace(export_of(Format.COSMOS), graph=FOUR)
    window = replace(clip.windows[0], captions={})
    [found] = records_of(export, replace(clip, windows=(window,)))
    assert found["t2w_windows"][0]["caption_json"] == {"subjects": ["a car"]}


def test_what_cosmos_would_drop_silently_is_left_out_with_a_reason() -> None:
    def passed(seconds: float, end_frame: int) -> object:
        [window] = clip_of(video_of("aa", seconds=seconds)).windows
        return cosmos_limits(replace(window, row=replace(window.row, end_frame=end_frame)))

    assert passed(61.5, 100) == TOO_LONG
    assert passed(60.0, 60) == TOO_SHORT
    assert not isinstance(passed(61.0, 61), str)
