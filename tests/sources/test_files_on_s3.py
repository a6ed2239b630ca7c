from __future__ import annotations

import pytest

from caption_assets.sources.files import find_clips, find_file
from caption_assets.store.root import Root

pytestmark = pytest.mark.store


def test_object_and_prefix_are_found(s3_url: str) -> None:
    root = Root.open(s3_url)
    root.write("clips/b.mp4", b"second")
    root.write("clips/inner/a.mp4", b"first")
    clips = list(find_clips([f"{s3_url}/clips/inner/a.mp4", f"{s3_url}/clips", f"{s3_url}/nowhere.mp4"]))
    assert [clip.key.removeprefix(s3_url) for clip in clips] == [
        "/clips/inner/a.mp4",
        "/clips/b.mp4",
        "/clips/inner/a.mp4",
        "/nowhere.mp4",
    ]
    assert [clip.video.read() for clip in clips[:3]] == [b"first", b"second", b"first"]
    assert [clip.refusal and clip.refusal.kind for clip in clips] == [None, None, None, "missing"]
    assert find_file(f"{s3_url}/clips/b.mp4").etag is not None
