from __future__ import annotations

from pathlib import Path

import pytest

import caption_assets
from caption_assets import UnreadableClip, Window, probe, windows
from tests.videos import moving_video

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 48 frames."""
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    path.write_bytes(moving_video(48, size=(96, 64)))
    return path


def test_probe_returns_the_clips_metadata(clip: Path) -> None:
    found = probe(clip)
    assert (found.codec, found.width, found.height, found.frames, found.fps) == ("h264", 96, 64, 48, 25)
    assert found.seconds == pytest.approx(48 / 25)
    assert probe(str(clip)) == found


def test_windows_follow_the_settings(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert windows(clip) == [Window(0, 0, 48, 0.0, probe(clip).seconds)]
    monkeypatch.setenv("CAPTION_WINDOW_SECONDS", "1")
    assert [(window.start_frame, window.end_frame) for window in windows(clip)] == [(0, 25), (25, 48)]


def test_unreadable_clip_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("text")
    (tmp_path / "short.mp4").write_bytes(moving_video(2))
    with pytest.raises(UnreadableClip, match=r"notes.mp4: the file is not a video"):
        probe(tmp_path / "notes.mp4")
    with pytest.raises(UnreadableClip, match=r"/nowhere.mp4: the file does not exist"):
        windows("/nowhere.mp4")
    with pytest.raises(UnreadableClip, match=r"short.mp4 has 2 frames, below the minimum of 4"):
        windows(tmp_path / "short.mp4")


def test_names_of_the_api_exist() -> None:
    assert set(caption_assets.__all__) <= set(dir(caption_assets))
    for name in caption_assets.__all__:
        assert getattr(caption_assets, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'captions'"):
        _ = caption_assets.captions
