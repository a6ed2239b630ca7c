from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionRow,
    ManifestRow,
    Status,
    TableError,
    publish_manifest,
    read_manifest,
    table_path,
)
from caption_assets.store.versions import (
    TableVersions,
    captions_version,
    manifest_version,
    next_manifest_version,
    read_versions,
)
from caption_assets.video.window import Windowing
from tests.conftest import SANDBOX
from tests.stages import STAGE1

pytestmark = pytest.mark.fast

VERSIONS = TableVersions("0123", "2-256-128", {"shards": "abcd"})


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


def test_versions_computed_after_the_last_row_are_stored(root: Root) -> None:
    publish_manifest(root, "s", [], {"windowing": "x"}, lambda: VERSIONS.file_metadata)
    assert read_versions(root, CLIP_MANIFEST, "s") == VERSIONS
    assert pq.read_schema(root.full(table_path(CLIP_MANIFEST, "s"))).metadata[b"windowing"] == b"x"


def test_failure_after_the_last_row_publishes_nothing(root: Root) -> None:
    def fail() -> dict[str, str]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        publish_manifest(root, "s", [], {}, fail)
    assert not root.exists(table_path(CLIP_MANIFEST, "s"))


def test_manifest_version_is_stable_across_a_round_trip(root: Root, sample_data: Path) -> None:
    source = Root.open(str(sample_data / "shards"))
    clips = list(probe_clips(SANDBOX, source, find_shard(source, "sample-folder"), Windowing()))
    rows, version = [row for clip in clips for row in clip.rows], ""
    for row in rows:
        version = next_manifest_version(version, row)
    publish_manifest(root, "s", rows, {})
    assert len(rows) > 2
    assert manifest_version(read_manifest(root, "s")) == version


def test_data_versions_equal_those_of_earlier_releases() -> None:
    window = ManifestRow("a.mp4", 0, "a0", "tag", 10, Status.OK, start_frame=0, end_frame=8)
    captions = [
        CaptionRow("a.mp4", 0, "a0", 0.0, 0.3, Status.OK, caption="A car.", attempts=1),
        CaptionRow("b.mp4", None, "b", None, None, Status.FAILED, error_kind="not_a_video", error="empty"),
    ]
    assert manifest_version([window]) == "cf9e7a46af2c1973", "every manifest would be outdated"
    assert captions_version(captions) == "0c69b6da98fdfc51", "every caption table would be outdated"


def test_present_name_of_an_error_keeps_the_version_of_earlier_tables() -> None:
    def failed(kind: str) -> CaptionRow:
        return CaptionRow("a.mp4", 0, "a", 0.0, 1.0, Status.FAILED, error_kind=kind, error="stage 1 failed")

    assert captions_version([failed("upstream_failed")]) == captions_version([failed("stage1_failed")])


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"versions": ""},
        {"versions": "[]"},
        {"versions": "null"},
        {"versions": '{"data": "1"}'},
        {"versions": '{"data": "1", "code": "2", "inputs": 3}'},
    ],
)
def test_invalid_versions_are_ignored(root: Root, metadata: dict[str, str]) -> None:
    publish_manifest(root, "s", [], metadata)
    assert read_versions(root, CLIP_MANIFEST, "s") is None


def test_damaged_footer_is_an_error(root: Root) -> None:
    publish_manifest(root, "s", [], {}, lambda: VERSIONS.file_metadata)
    path = table_path(CLIP_MANIFEST, "s")
    data = root.read(path)
    footer = int.from_bytes(data[-8:-4], "little")
    for damaged in (b"", data[: len(data) // 2], data[: -8 - footer] + b"\x19" * footer + data[-8:]):
        root.write(path, damaged)
        with pytest.raises(TableError, match="is damaged"):
            read_versions(root, CLIP_MANIFEST, "s")


def test_missing_table_has_no_versions(root: Root) -> None:
    assert read_versions(root, STAGE1.name, "s") is None


def test_table_of_another_program_has_no_versions(root: Root, tmp_path: Path) -> None:
    file = tmp_path / table_path(STAGE1.name, "s")
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), file)
    assert read_versions(root, STAGE1.name, "s") is None
