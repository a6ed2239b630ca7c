import pytest

from caption_assets.clips.container import UnreadableClip
from caption_assets.clips.probe import probe
from tests.videos import counting_video, sound_only

pytestmark = pytest.mark.fast


def test_a_clip_is_described_without_decoding() -> None:
    found = probe(counting_video(50, fps=25, size=(64, 48)))
    assert (found.codec, found.width, found.height, found.frames) == ("h264", 64, 48, 50)
    assert found.fps == pytest.approx(25)
    assert found.seconds == pytest.approx(2.0)


def test_times_of_a_variable_rate_are_those_of_the_file() -> None:
    stamps = [0, 1, 2, 10, 20, 21]
    found = probe(counting_video(6, fps=10, stamps=stamps))
    assert found.times == pytest.approx([stamp / 10 for stamp in stamps])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "not_a_video"),
        (b"<html>404</html>" * 10, "not_a_video"),
        (sound_only(), "no_video_stream"),
        (counting_video(30)[:1500], "damaged"),
    ],
    ids=["empty", "html", "sound", "cut off"],
)
def test_what_is_no_video_is_refused_with_a_reason(data: bytes, kind: str) -> None:
    with pytest.raises(UnreadableClip) as refused:
        probe(data)
    assert refused.value.kind == kind
    assert str(refused.value)


def test_a_cut_off_file_says_so() -> None:
    with pytest.raises(UnreadableClip, match="cut off"):
        probe(counting_video(30)[:1500])


def test_a_playlist_cannot_make_ffmpeg_open_other_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "secret.mp4").write_bytes(counting_video(8))
    with pytest.raises(UnreadableClip):
        probe(f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n".encode())
