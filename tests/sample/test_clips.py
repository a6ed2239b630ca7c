import pytest

from caption_assets.sample.clips import encode, random_clip
from caption_assets.video.probe import probe

pytestmark = pytest.mark.fast

SMALL = {"shortest": (96, 128), "longest_seconds": 1.5}


@pytest.mark.parametrize("seed", range(4))
def test_encoded_clip_has_its_codec_size_frames_and_fps(seed: int) -> None:
    clip = random_clip(seed, **SMALL)  # type: ignore[arg-type]
    found = probe(encode(clip))
    assert (found.codec, found.width, found.height) == (clip.codec, clip.width, clip.height)
    assert found.frames == clip.frames
    assert found.fps == pytest.approx(clip.fps, rel=0.01)


@pytest.mark.parametrize("seed", [1, 5])
def test_clips_of_the_same_seed_have_the_same_bytes(seed: int) -> None:
    clip = random_clip(seed, **SMALL)  # type: ignore[arg-type]
    files = {encode(random_clip(seed, **SMALL)) for _ in range(8)}  # type: ignore[arg-type]
    assert files == {encode(clip)}


def test_random_clips_use_both_codecs() -> None:
    assert {random_clip(seed).codec for seed in range(20)} == {"h264", "vp9"}
