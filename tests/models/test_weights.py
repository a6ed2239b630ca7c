from pathlib import Path

import pytest

from caption_assets.models.variants import SAMPLE
from caption_assets.models.weights import (
    MANIFEST,
    WeightFile,
    WeightsError,
    WeightsManifest,
    describe,
    ensure_local,
    publish,
    read_manifest,
)
from caption_assets.store.root import Root

pytestmark = pytest.mark.fast


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "root"))


def test_the_mirror_holds_every_file_and_then_the_manifest(root: Root) -> None:
    manifest = publish(root, SAMPLE)
    folder = Path(root.full(f"weights/{SAMPLE.folder}"))
    assert describe(folder, SAMPLE) == manifest == read_manifest(root, SAMPLE)
    assert (folder / MANIFEST).stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in folder.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.path for file in manifest.files}


def test_publishing_again_gives_the_same_version_and_writes_nothing(root: Root) -> None:
    first = publish(root, SAMPLE)
    weights = Path(root.full(f"weights/{SAMPLE.folder}/model.safetensors"))
    before = weights.stat().st_mtime_ns
    assert publish(root, SAMPLE).digest == first.digest
    assert weights.stat().st_mtime_ns == before


def test_an_interrupted_publication_is_no_mirror_until_it_is_done_again(root: Root, tmp_path: Path) -> None:
    publish(root, SAMPLE)
    Path(root.full(f"weights/{SAMPLE.folder}/{MANIFEST}")).unlink()
    with pytest.raises(WeightsError, match="materialize model_weights"):
        ensure_local(root, SAMPLE, tmp_path / "cache")
    publish(root, SAMPLE)
    assert ensure_local(root, SAMPLE, tmp_path / "cache").is_dir()


def test_the_local_copy_is_the_mirrors(root: Root, tmp_path: Path) -> None:
    manifest = publish(root, SAMPLE)
    folder = ensure_local(root, SAMPLE, tmp_path / "cache")
    assert describe(folder, SAMPLE) == manifest
    assert ensure_local(root, SAMPLE, tmp_path / "cache") == folder


def test_a_damaged_mirror_is_refused_and_leaves_no_local_copy(root: Root, tmp_path: Path) -> None:
    publish(root, SAMPLE)
    weights = Path(root.full(f"weights/{SAMPLE.folder}/model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors has the SHA-256 .* damaged"):
        ensure_local(root, SAMPLE, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json"])
def test_a_manifest_cannot_lead_out_of_its_folder(path: str) -> None:
    manifest = WeightsManifest("a/b", "1", (WeightFile(path, 1, "00"),))
    with pytest.raises(WeightsError, match="outside"):
        WeightsManifest.from_json(manifest.to_json())


def test_a_folder_without_safetensors_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(WeightsError, match=r"no \.safetensors"):
        describe(tmp_path, SAMPLE)
