"""Video files with text files.

Sources: musubi-tuner docs/dataset_config.md; diffusion-pipe utils/dataset.py (a file is a video unless it ends in .txt,
.npz, .json, .parquet, .bak or .db); ai-toolkit toolkit/data_loader.py; SimpleTuner documentation/DATALOADER.md (each
line of a text file is a caption).
"""

import pytest

from caption_assets.export.config import Cut, CutConfig, Format
from caption_assets.export.formats import layout_of
from caption_assets.export.formats.layout import SharedVideo
from tests.export.formats.clips import clip_of, export_of, video_of

pytestmark = pytest.mark.fast


def test_each_video_has_a_text_file_of_its_name_with_one_line() -> None:
    layout = layout_of(export_of(Format.PAIRS))
    assert list(layout.sidecars(clip_of(video_of("aa"), video_of("bb")))) == [
        ("aa.txt", b"A red car turns left. It stops."),
        ("bb.txt", b"A red car turns left. It stops."),
    ]


def test_no_other_file_of_a_shard_is_taken_for_a_video() -> None:
    assert layout_of(export_of(Format.PAIRS)).suffix == "json"


def test_windows_of_one_file_are_an_error_with_a_remedy() -> None:
    layout = layout_of(export_of(Format.PAIRS, CutConfig(Cut.NONE)))
    assert len(layout.samples(clip_of(video_of("aa")))) == 1
    with pytest.raises(SharedVideo, match=r"clip 'car\.mp4' has 2 windows.*CAPTION_EXPORT_CUT=exact"):
        layout.samples(clip_of(video_of("aa"), video_of("aa")))
