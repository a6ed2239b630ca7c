import pytest

from caption_assets.errors import UnreadableClip
from caption_assets.video.container import check_size, open_video
from tests.videos import film

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", ["h264", "vp9", "av1"])
def test_a_decoder_keeps_to_one_thread(name: str) -> None:
    with open_video(film(name)) as (container, stream):
        next(container.decode(stream))
        assert stream.codec_context.thread_count == 1


def test_a_clip_does_not_change_what_the_next_is_opened_with() -> None:
    test_a_decoder_keeps_to_one_thread("h264")
    test_a_decoder_keeps_to_one_thread("h264")


def test_the_largest_size_is_still_decoded() -> None:
    check_size(8192, 8192)
    check_size(16384, 4096)
    with pytest.raises(UnreadableClip, match="8193x8192"):
        check_size(8193, 8192)
    with pytest.raises(UnreadableClip, match="16385x16"):
        check_size(16385, 16)
