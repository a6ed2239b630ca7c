from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from caption_assets.models.mirror import publish
from caption_assets.models.variants import SAMPLE, find_variant
from caption_assets.models.weights import MANIFEST, WeightsError, describe, mirror_path, read_manifest
from caption_assets.store.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "root"))


@pytest.mark.fast
def test_the_mirror_holds_every_file_and_then_the_manifest(root: Root, tmp_path: Path) -> None:
    manifest = publish(root, SAMPLE, tmp_path)
    folder = Path(root.full(mirror_path(SAMPLE)))
    assert describe(folder, SAMPLE) == manifest == read_manifest(root, SAMPLE)
    assert (folder / MANIFEST).stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in folder.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.path for file in manifest.files}


@pytest.mark.fast
def test_publishing_again_gives_the_same_version_and_writes_nothing(root: Root, tmp_path: Path) -> None:
    first = publish(root, SAMPLE, tmp_path)
    weights = Path(root.full(mirror_path(SAMPLE, "model.safetensors")))
    before = weights.stat().st_mtime_ns
    assert publish(root, SAMPLE, tmp_path).digest == first.digest
    assert weights.stat().st_mtime_ns == before


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model and other things."""
    folder = tmp_path / "model"
    shutil.copytree(str(files("caption_assets.sample") / "model"), folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


@pytest.mark.fast
def test_a_folder_that_has_changed_is_mirrored_anew(root: Root, model: Path, tmp_path: Path) -> None:
    variant = find_variant(str(model), "mine", like="sample")
    first = publish(root, variant, tmp_path)
    assert "pytorch_model.bin" not in {file.path for file in first.files}
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    second = publish(root, variant, tmp_path)
    assert first != second == read_manifest(root, variant)


@pytest.mark.store
def test_a_folder_in_object_storage_is_mirrored(root: Root, model: Path, tmp_path: Path, s3_url: str) -> None:
    source = Root.open(f"{s3_url}/models/fine-tuned")
    for file in model.iterdir():
        source.upload(file.name, file)
    variant = find_variant(source.url, "mine", like="sample")
    assert publish(root, variant, tmp_path / "work").files == describe(model, variant).files
    assert variant.hub_id == "local/fine-tuned"
    assert list((tmp_path / "work").rglob("*.safetensors")) == []
    with pytest.raises(WeightsError, match="there is nothing in"):
        publish(root, replace(variant, path=f"{s3_url}/nowhere", revision="other"), tmp_path / "work")
