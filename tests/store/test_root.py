import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, Status, publish_captions, read_captions
from tests.disks import small_disk
from tests.stages import STAGE1
from tests.store.conftest import StartProxy
from tests.store.fault_proxy import Refusal


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """An empty root, on the local disk and on an S3 API."""
    if request.param == "local":
        return Root.open(str(tmp_path / "root"))
    return Root.open(request.getfixturevalue("s3_url"))


def test_written_object_can_be_read(root: Root) -> None:
    root.write("deep/er/file.bin", b"\0data")
    assert root.exists("deep/er/file.bin")
    assert root.read("deep/er/file.bin") == b"\0data"


def test_second_write_replaces_the_first_without_leftovers(root: Root) -> None:
    root.write("folder/file", b"one")
    root.write("folder/file", b"two")
    assert root.read("folder/file") == b"two"
    assert [entry["name"].rsplit("/", 1)[-1] for entry in root.entries("folder")] == ["file"]


def test_upload_preserves_content(root: Root, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 100_000)
    root.upload("a/b", tmp_path / "weights")
    assert root.read("a/b") == b"w" * 100_000


def test_taken_file_replaces_the_object_and_is_removed(root: Root, tmp_path: Path) -> None:
    root.write("a/b", b"old")
    (tmp_path / "made").write_bytes(b"new")
    root.take("a/b", tmp_path / "made")
    assert root.read("a/b") == b"new"
    assert root.names("a") == ["b"]
    assert not (tmp_path / "made").exists()


def test_missing_object_is_a_file_not_found_error(root: Root) -> None:
    with pytest.raises(FileNotFoundError):
        root.read("nothing")


def test_concurrent_creations_have_one_winner(root: Root) -> None:
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda number: root.create("deep/er/lock", b"writer %d" % number), range(16)))
    assert created.count(True) == 1
    assert root.read("deep/er/lock") == b"writer %d" % created.index(True)
    assert root.names("deep/er") == ["lock"]


def test_repeated_creation_is_recognized_by_its_content(root: Root) -> None:
    assert root.create("lock", b"mine")
    assert root.create("lock", b"mine")
    assert not root.create("lock", b"another's")


def test_exclusive_creation_is_detected(root: Root) -> None:
    assert root.supports_create()
    assert root.names("") == []


@pytest.mark.store
@pytest.mark.parametrize(("without", "plan"), [("If-None-Match", []), ("", [Refusal(501, "NotImplemented")])])
def test_missing_exclusive_creation_is_probed_once(
    request: pytest.FixtureRequest, s3_url: str, start_proxy: StartProxy, without: str, plan: list[Refusal]
) -> None:
    if without and request.config.getoption("--s3-server") != "moto":
        pytest.skip("the header is signed, which this server checks")
    proxy = start_proxy(plan, without=without)
    root = Root.open(s3_url)
    assert not root.supports_create()
    probes = proxy.requests.total()
    assert not root.supports_create()
    assert proxy.requests.total() == probes
    assert root.names("") == []


@pytest.mark.store
def test_conflicting_creation_is_not_a_success(s3_url: str, start_proxy: StartProxy) -> None:
    start_proxy([Refusal(409, "ConditionalRequestConflict")])
    assert not Root.open(s3_url).create("lock", b"mine")


@pytest.mark.fast
def test_age_is_measured_by_the_stores_clock(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    root.write("folder/lease", b"")
    past = time.time() - 100
    os.utime(tmp_path / "folder" / "lease", (past, past))
    assert 99 < root.age("folder/lease") < 110
    assert root.names("folder") == ["lease"]


@pytest.mark.store
def test_age_grows_until_the_object_is_rewritten(s3_url: str) -> None:
    root = Root.open(s3_url)
    root.write("lease", b"")
    time.sleep(2)
    assert 1 <= root.age("lease") < 10
    root.write("lease", b"")
    assert root.age("lease") <= 1
    assert root.names("") == ["lease"]


def test_age_of_a_missing_object_is_an_error(root: Root) -> None:
    root.write("other", b"")
    with pytest.raises(FileNotFoundError):
        root.age("lease")
    assert root.names("") == ["other"]


def test_reader_sees_complete_tables_during_publication(root: Root) -> None:
    def publish(version: int) -> None:
        rows = [
            CaptionRow(f"{row}.mp4", 0, "id", 0.0, 1.0, Status.OK, caption=f"{version} " * (version % 7 + 1))
            for row in range(100 + version)
        ]
        publish_captions(root, STAGE1.name, "s", rows, [row.key for row in rows], {})

    publish(0)
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(lambda: list(map(publish, range(1, 101))))
        versions = []
        while not writing.done():
            rows = read_captions(root, STAGE1.name, "s")
            [caption] = {row.caption for row in rows}
            version = int(str(caption).split()[0])
            assert len(rows) == 100 + version
            versions.append(version)
        writing.result()
    assert versions == sorted(versions)
    assert len(set(versions)) > 3


def test_download_preserves_content(root: Root, tmp_path: Path) -> None:
    root.write("a/b", b"w" * 100_000)
    root.download("a/b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"w" * 100_000
    with pytest.raises(FileNotFoundError):
        root.download("a/c", tmp_path / "none")


def test_removed_object_is_gone(root: Root) -> None:
    root.write("folder/file", b"")
    root.remove("folder/file")
    root.remove("folder/file")
    assert root.names("folder") == []
    assert root.names("nowhere") == []


def test_several_objects_are_removed_at_once(root: Root) -> None:
    for name in ("a", "b", "kept"):
        root.write(f"folder/{name}", b"")
    root.remove_all(["folder/a", "folder/b", "folder/missing"])
    assert root.names("folder") == ["kept"]
    root.remove_all([])


def test_write_check_leaves_no_object(root: Root) -> None:
    root.write("kept", b"")
    root.check_writable("CAPTION_ROOT")
    assert [entry["name"].rsplit("/", 1)[-1] for entry in root.entries()] == ["kept"]


@pytest.mark.fast
def test_root_contains_paths_below_it_after_resolving_links(tmp_path: Path) -> None:
    (tmp_path / "real" / "in").mkdir(parents=True)
    (tmp_path / "root").symlink_to("real")
    (tmp_path / "real" / "out").symlink_to("..")
    (tmp_path / "real" / "stay").symlink_to("in")
    root = Root.open(str(tmp_path / "root"))
    contained = {path: root.contains(path) for path in ("", "in/new", "stay/new", "out/new", "out", "../realm")}
    assert contained == {"": True, "in/new": True, "stay/new": True, "out/new": False, "out": False, "../realm": False}


@pytest.mark.fast
def test_unwritable_root_is_an_error_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"CAPTION_ROOT is '.*/file/root'.*choose a folder"):
        Root.open(str(tmp_path / "file" / "root")).check_writable("CAPTION_ROOT")
    with pytest.raises(StoreError, match=r"CAPTION_ROOT is '/proc/captions', which is not writable"):
        Root.open("/proc/captions").check_writable("CAPTION_ROOT")


@pytest.mark.fast
def test_root_is_created_but_not_its_parents(tmp_path: Path) -> None:
    Root.open(str(tmp_path / "root")).check_writable("CAPTION_ROOT")
    with pytest.raises(StoreError, match=r"CAPTION_ROOT is .* but .*/mistyped does not exist"):
        Root.open(str(tmp_path / "mistyped" / "root")).check_writable("CAPTION_ROOT")


@pytest.mark.store
def test_missing_bucket_is_an_error_with_its_setting(s3_url: str) -> None:
    with pytest.raises(StoreError, match="CAPTION_ROOT is 's3://no-such-bucket/x'"):
        Root.open("s3://no-such-bucket/x").check_writable("CAPTION_ROOT")


@pytest.mark.fast
def test_unknown_protocol_is_an_error() -> None:
    with pytest.raises(StoreError, match="gopher"):
        Root.open("gopher://somewhere/x")


@pytest.mark.fast
def test_failed_write_keeps_the_old_object(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=64) as folder:
        root = Root.open(str(folder))
        root.write("table", b"old")
        with pytest.raises(StoreError, match="no space left on the disk"):
            root.write("table", bytes(1 << 20))
        assert root.read("table") == b"old"
        assert [path.name for path in folder.iterdir()] == ["table"]


def test_sizes_include_all_depths(root: Root) -> None:
    for path in ("a/b/c", "a/d", "ab/e"):
        root.write(path, path.encode())
    assert root.sizes("a") == {"a/b/c": 5, "a/d": 3}
    assert root.sizes("nothing") == {}


def test_tags_change_when_an_object_is_written(root: Root) -> None:
    for path in ("a/b/c", "a/d", "ab/e"):
        root.write(path, b"one")
    before = root.tags("a")
    assert before.keys() == {"a/b/c", "a/d"}
    assert root.tags("a") == before
    root.write("a/d", b"two")
    assert {path for path, tag in root.tags("a").items() if tag != before[path]} == {"a/d"}
    assert root.tags("nothing") == {}


def test_move_replaces_the_target(root: Root) -> None:
    root.write("a/b", b"one")
    root.write("c/d/e", b"another")
    root.move("a/b", "c/d/e")
    assert root.read("c/d/e") == b"one"
    assert not root.exists("a/b")
    with pytest.raises(FileNotFoundError):
        root.move("a/b", "c/d/e")
    assert root.read("c/d/e") == b"one"


def test_prune_removes_only_empty_folders(root: Root) -> None:
    root.write("a/b/c", b"x")
    root.write("a/d/e", b"x")
    root.remove("a/d/e")
    root.prune("a")
    assert root.names("a") == ["b"]
    root.prune("nothing")
