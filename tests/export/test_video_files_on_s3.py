"""Window files on a server with S3's protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caption_assets.export.config import Cut, CutConfig
from caption_assets.store.root import Root
from tests.export.shards import LINES, publish_captioned
from tests.export.test_video_files import EXACT, export, real_clip, videos
from tests.videos import video_of_kind

pytestmark = pytest.mark.store


def test_window_files_are_written_once_and_replaced_together(s3_url: str) -> None:
    root = Root.open(s3_url)
    rows = real_clip(root, "a.mp4", video_of_kind("h264"), size=12)
    publish_captioned(root, rows)
    first = export(root, EXACT)
    assert len(videos(root)) == len(rows) == 4
    assert export(root, EXACT) == replace(first, written=False)
    before = set(videos(root))
    export(root, replace(EXACT, cut=CutConfig(Cut.EXACT, longest_side=48)))
    assert len(videos(root)) == 4
    assert before.isdisjoint(videos(root))
    export(root, LINES)
    assert videos(root) == []
