import pytest

from caption_assets.errors import UnreadableClip
from caption_assets.video.container import check_size, open_video
from tests.videos import video_of_kind

pytestmark = pytest.mark.fast


def threads_of_decoder(data: bytes) -> int:
    with open_video(data) as (container, stream):
        next(container.decode(stream))
        return stream.codec_context.thread_count


@pytest.mark.parametrize("name", ["h264", "vp9", "av1"])
def test_decoder_uses_one_thread_for_every_clip(name: str) -> None:
    data = video_of_kind(name)
    assert [threads_of_decoder(data) for _ in range(2)] == [1, 1]


def test_check_size_accepts_sizes_up_to_the_limits() -> None:
    check_size(8192, 8192)
    check_size(16384, 4096)
    with pytest.raises(UnreadableClip, match="8193x8192"):
        check_size(8193, 8192)
    with pytest.raises(UnreadableClip, match="16385x16"):
        check_size(16385, 16)
