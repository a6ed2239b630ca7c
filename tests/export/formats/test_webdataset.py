import pytest

from caption_assets.export.config import Format
from caption_assets.export.formats import layout_of
from tests.export.formats.clips import EXACT, clip_of, export_of, video_of

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("format", [Format.WEBDATASET, Format.ENERGON])
def test_sample_is_a_clip_or_a_window_if_windows_are_cut(format: Format) -> None:
    clip = clip_of(video_of("aa"), video_of("bb"))
    [whole] = layout_of(export_of(format)).samples(clip)
    assert len(whole.record["windows"]) == 2
    windows = layout_of(export_of(format, EXACT)).samples(clip)
    assert [sample.window for sample in windows] == list(clip.windows)
    assert [sample.key.partition("-")[0] for sample in windows] == [whole.key] * 2
    assert [sample.record["video_frames"] for sample in windows] == [100, 100]


@pytest.mark.parametrize("cut", [None, EXACT])
def test_features_are_those_of_the_records(cut: object) -> None:
    layout = layout_of(export_of(Format.WEBDATASET, cut))  # type: ignore[arg-type]
    assert layout.features is not None
    for sample in layout.samples(clip_of(video_of("aa"))):
        assert {feature["name"] for feature in layout.features[0]["struct"]} == set(sample.record)
