from pathlib import Path

import pytest

from caption_assets.store.previews import Preview, StoredPreviews, write_preview
from caption_assets.store.root import Root

pytestmark = pytest.mark.fast

PREVIEW = Preview(b"six frames", 6)


def former(root: Root, window_id: str) -> None:
    """The preview of an earlier release."""
    root.write(f"gallery/shard/previews/{window_id}.webp", b"animation")
    root.write(f"gallery/shard/previews/{window_id}.jpg", b"poster")


def test_preview_is_one_object(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    write_preview(root, "shard", "a1", PREVIEW)
    assert root.names("gallery/shard/previews") == ["a1.6.jpg"]


def test_previews_are_read_by_window(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    write_preview(root, "shard", "a1", PREVIEW)
    previews = StoredPreviews(root, "shard")
    assert ("a1" in previews, "b2" in previews) == (True, False)
    assert previews.read(["a1", "b2"]) == {"a1": PREVIEW}


def test_posters_of_earlier_releases_are_read_but_count_as_missing(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    former(root, "a1")
    former(root, "b2")
    write_preview(root, "shard", "b2", PREVIEW)
    previews = StoredPreviews(root, "shard")
    assert "a1" not in previews
    assert previews.read(["a1", "b2"]) == {"a1": Preview(b"poster", 1), "b2": PREVIEW}


def test_preview_that_is_removed_meanwhile_is_left_out(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    write_preview(root, "shard", "a1", PREVIEW)
    previews = StoredPreviews(root, "shard")
    root.remove("gallery/shard/previews/a1.6.jpg")
    assert previews.read(["a1"]) == {}


def test_shard_without_previews_has_none(tmp_path: Path) -> None:
    assert StoredPreviews(Root.open(str(tmp_path)), "shard").read(["a1"]) == {}
