from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from caption_assets.report.galleries import gallery_address, serving_galleries, write_galleries
from caption_assets.report.missing_previews import make_missing_previews
from caption_assets.sample.shards import FOLDER_SHARD
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.previews import Preview, StoredPreviews, preview_folder, write_preview
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status, TableError
from caption_assets.video.window import Windowing
from tests.conftest import SANDBOX
from tests.report.windows import captioned, failed, publish, window
from tests.stages import STAGES

pytestmark = pytest.mark.fast

NAMES = [stage.name for stage in STAGES]
CAR = window("car.mp4")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with two captioned shards."""
    root = Root.open(str(tmp_path / "root"))
    for shard in ("street-a", "street-b"):
        publish(root, [CAR], [captioned(CAR, "A car.")], shard=shard)
    return root


def test_galleries_of_named_shards_are_written_and_their_addresses_printed(
    root: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    write_galleries(root, root, NAMES, ["street-b"], None, None)
    page = Path(root.full("gallery/street-b/index.html"))
    assert capsys.readouterr().out == f"{page.as_uri()}\n"
    assert "A car." in page.read_text()
    assert root.names("gallery") == ["index.html", "street-b"]
    assert '["street-b",1,1,' in root.read("gallery/index.html").decode()


def test_galleries_of_all_shards_are_written(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    write_galleries(root, root, NAMES, None, "http://captions.example.com/", None)
    assert capsys.readouterr().out.splitlines() == [
        "http://captions.example.com/gallery/street-a/index.html",
        "http://captions.example.com/gallery/street-b/index.html",
    ]


def test_root_without_tables_is_an_error(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    with pytest.raises(TableError, match="has no tables: caption shards first"):
        write_galleries(root, root, ["stage1_captions"], None, None, None)


def test_unknown_shard_lists_near_names(root: Root) -> None:
    with pytest.raises(TableError, match="no tables of shard 'stret-a'; did you mean street-"):
        write_galleries(root, root, NAMES, ["street-b", "stret-a"], None, None)
    assert root.names("gallery") == []


def test_damaged_table_does_not_stop_other_galleries(root: Root) -> None:
    root.write("stage1_captions/shard=street-a/captions.parquet", b"damaged")
    with pytest.raises(TableError, match=r"shard=street-a/captions.parquet is damaged"):
        write_galleries(root, root, NAMES, None, None, None)
    assert root.names("gallery") == ["index.html", "street-b"]


def test_address_of_a_gallery_in_object_storage_is_the_objects() -> None:
    root = Root.open("memory://bucket/captions")
    assert gallery_address(root, "a", None) == "memory:///bucket/captions/gallery/a/index.html"
    assert gallery_address(root, "a", "https://x/y") == "https://x/y/gallery/a/index.html"


def test_galleries_of_a_server_elsewhere_are_not_served(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    with serving_galleries(root, NAMES, "https://captions.example.com:8443/links"):
        assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def manifest(sample_data: Path) -> list[ManifestRow]:
    source = Root.open(str(sample_data / "shards"))
    return [
        row for clip in probe_clips(SANDBOX, source, find_shard(source, FOLDER_SHARD), Windowing()) for row in clip.rows
    ]


def test_missing_previews_are_made_and_the_others_kept(
    manifest: list[ManifestRow], sample_data: Path, tmp_path: Path
) -> None:
    root, source = Root.open(str(tmp_path)), Root.open(str(sample_data / "shards"))
    readable = [row for row in manifest if row.status is Status.OK]
    kept, earlier = readable[0].window_id, readable[1].window_id
    write_preview(root, FOLDER_SHARD, kept, Preview(b"kept", 6))
    root.write(f"{preview_folder(FOLDER_SHARD)}/{earlier}.jpg", b"poster of an earlier release")
    made = make_missing_previews(root, source, FOLDER_SHARD, manifest, SANDBOX)
    assert (made.made, made.errors) == (len(readable) - 1, [])
    previews = StoredPreviews(root, FOLDER_SHARD).read([row.window_id for row in manifest])
    assert previews.pop(kept).jpeg == b"kept"
    assert previews.keys() == {row.window_id for row in readable[1:]}
    for row in readable[1:]:
        preview = previews[row.window_id]
        with Image.open(BytesIO(preview.jpeg)) as picture:
            ratio = picture.width / (picture.height / preview.frames)
        assert row.width
        assert row.height
        assert ratio == pytest.approx(row.width / row.height, rel=0.03)
    assert make_missing_previews(root, source, FOLDER_SHARD, manifest, SANDBOX).made == 0


def test_clips_that_are_gone_or_changed_leave_the_other_previews(
    manifest: list[ManifestRow], sample_data: Path, tmp_path: Path
) -> None:
    root, source = Root.open(str(tmp_path / "root")), Root.open(str(tmp_path / "source"))
    readable = [row for row in manifest if row.status is Status.OK][:3]
    for number, row in enumerate(readable):
        data = (sample_data / "shards" / row.uri).read_bytes()
        if number:
            source.write(row.uri, data if number == 1 else data[:-9])
    made = make_missing_previews(root, source, FOLDER_SHARD, readable, SANDBOX)
    assert (made.made, len(made.errors)) == (1, 2)
    assert made.errors[0].startswith(f"{readable[0].clip_key}: ")
    assert readable[1].window_id in StoredPreviews(root, FOLDER_SHARD)


def test_previews_are_reported_and_shown(
    manifest: list[ManifestRow], sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, source = Root.open(str(tmp_path)), Root.open(str(sample_data / "shards"))
    rows = [
        captioned(row, "A disk.") if row.status is Status.OK else failed(row, "damaged", "cut off") for row in manifest
    ]
    publish(root, manifest, rows, shard=FOLDER_SHARD)
    write_galleries(root, source, NAMES, [FOLDER_SHARD], None, SANDBOX)
    assert capsys.readouterr().err == f"{FOLDER_SHARD}: 12 of 12 missing previews made\n"
    page = Path(root.full(f"gallery/{FOLDER_SHARD}/index.html")).read_text()
    assert page.count('[6,"/9j/') == 12
