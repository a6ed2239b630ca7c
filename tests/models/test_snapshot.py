"""Tests of snapshots: folders as NeMo Curator's ``download_weights_on_node`` leaves them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from caption_assets.models.snapshot import RECORDS, IncompleteSnapshot, Snapshot
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.files import MODEL, SHARD, contents, flip_a_bit
from tests.models.hub_server import COMMIT, HUB_ID, Fault, HubServer, small_model

pytestmark = pytest.mark.store
OTHER_COMMIT = "d" * 40


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return Snapshot(Root.open(str(tmp_path)), MODEL, "download them", setting="model_dir")


@pytest.fixture
def downloaded(hub: HubServer, snapshot: Snapshot) -> Snapshot:
    """A snapshot that huggingface_hub downloaded, as the reference calls it. The Hub is out of reach afterwards."""
    snapshot_download(HUB_ID, revision=COMMIT[:8], local_dir=snapshot.path, cache_dir=snapshot.path)
    hub.requests.clear()
    hub.files.clear()
    hub.faults[""] = [Fault(status=503)] * 9
    return snapshot


def test_download_is_verified_and_not_repeated(hub: HubServer, snapshot: Snapshot) -> None:
    hub.faults[SHARD] = [Fault(flip=9)]
    for _ in range(2):
        snapshot.download()
    assert (snapshot.path / SHARD).read_bytes() == hub.files[SHARD]
    assert hub.sent[SHARD] == 2 * len(hub.files[SHARD])


def test_snapshot_is_verified_with_its_recorded_hashes(
    hub: HubServer, downloaded: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    files = contents(downloaded.path)
    downloaded.download()
    downloaded.verify()
    found = contents(downloaded.path)
    assert found.pop(MANIFEST)
    assert (found, hub.requests, caplog.messages) == (files, [], [])


def test_file_that_differs_from_its_record_is_refused_and_kept(downloaded: Snapshot) -> None:
    flip_a_bit(downloaded.path / SHARD)
    files = contents(downloaded.path)
    for call in (downloaded.verify, downloaded.download):
        with pytest.raises(WeightsError, match=rf"{SHARD} is not the published file \(its SHA-256.*: remove it, and"):
            call()
    assert contents(downloaded.path) == files


@pytest.mark.parametrize("missing", [SHARD, "config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_missing_file_is_found_and_downloaded(hub: HubServer, downloaded: Snapshot, missing: str) -> None:
    content = (downloaded.path / missing).read_bytes()
    (downloaded.path / missing).unlink()
    with pytest.raises(IncompleteSnapshot, match="download them"):
        downloaded.verify()
    hub.files |= {name: data for name, data in contents(downloaded.path).items() if "/" not in name}
    hub.files[missing] = content
    hub.faults.clear()
    downloaded.download()
    assert (downloaded.path / missing).read_bytes() == content
    assert {path for path, sent in hub.sent.items() if sent} >= {missing}


def test_file_that_is_not_the_published_one_is_replaced_if_another_is_missing(
    hub: HubServer, downloaded: Snapshot
) -> None:
    published = (downloaded.path / SHARD).read_bytes()
    flip_a_bit(downloaded.path / SHARD)
    (downloaded.path / "tokenizer.json").unlink()
    hub.files |= small_model()
    hub.faults.clear()
    downloaded.download()
    assert (downloaded.path / SHARD).read_bytes() == published


def test_too_little_space_names_the_argument_of_the_folder(
    hub: HubServer, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(snapshot.root.path)._replace(free=150_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WeightsError, match=r"0\.1 MB free: .* \(model_dir\)"):
        snapshot.download()


def test_truncated_shard_is_incomplete(downloaded: Snapshot) -> None:
    data = (downloaded.path / SHARD).read_bytes()
    (downloaded.path / SHARD).write_bytes(data[:-1])
    with pytest.raises(IncompleteSnapshot, match=SHARD):
        downloaded.verify()


def test_snapshot_of_another_commit_is_verified_with_a_warning(
    downloaded: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (downloaded.path / RECORDS).glob("*.metadata"):
        path.write_text(path.read_text().replace(COMMIT, OTHER_COMMIT))
    downloaded.download()
    assert f"commit {OTHER_COMMIT} instead of {COMMIT}" in caplog.text
    assert not (downloaded.path / MANIFEST).exists()
    flip_a_bit(downloaded.path / SHARD)
    with pytest.raises(WeightsError, match="is not the published file"):
        downloaded.verify()


def test_snapshot_without_records_is_verified_with_the_hub(
    hub: HubServer, snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot_download(HUB_ID, revision=COMMIT[:8], local_dir=snapshot.path)
    shutil.rmtree(snapshot.path / ".cache")
    hub.sent.clear()
    snapshot.download()
    assert (snapshot.path / MANIFEST).exists()
    assert not hub.sent[SHARD]
    (snapshot.path / MANIFEST).unlink()
    flip_a_bit(snapshot.path / SHARD)
    with pytest.raises(WeightsError, match=f"{SHARD} is not the published file"):
        snapshot.download()
    assert caplog.messages == []


def test_snapshot_without_records_is_accepted_if_the_hub_is_unreachable(
    downloaded: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    shutil.rmtree(downloaded.path / ".cache")
    downloaded.verify()
    downloaded.download()
    assert caplog.text.count("no hashes are known") == 2
    assert "cannot list the files" in caplog.text
    assert not (downloaded.path / MANIFEST).exists()


def test_snapshot_in_a_folder_that_cannot_be_written_is_verified(
    downloaded: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.pipe_file", refuse)
    downloaded.verify()
    assert not (downloaded.path / MANIFEST).exists()
