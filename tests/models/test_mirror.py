from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.models.mirror import publish
from caption_assets.models.variants import SAMPLE, Variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.files import PARTS, SHARD, contents, folder_of, write_model
from tests.models.hub_server import small_model

pytestmark = pytest.mark.fast


def test_the_packages_model_needs_no_hub(root: Root, cache: Path) -> None:
    manifest = publish(root, SAMPLE, cache)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.path for file in manifest.files}
    before = (folder_of(root, SAMPLE) / "model.safetensors").stat().st_mtime_ns
    assert publish(root, SAMPLE, cache).digest == manifest.digest
    assert (folder_of(root, SAMPLE) / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_that_changes_is_mirrored_again(root: Root, cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "mine", small_model())
    (tmp_path / "mine" / "extra.txt").write_text("not for long")
    variant = Variant("local/mine", "v1", path=str(tmp_path / "mine"))
    first = publish(root, variant, cache)
    (tmp_path / "mine" / "extra.txt").unlink()
    (tmp_path / "mine" / "config.json").write_bytes(b'{"auto_map": {"AutoModel": "modeling.Kind"}}')
    second = publish(root, variant, cache)
    assert second.digest != first.digest
    assert sorted(contents(folder_of(root, variant))) == sorted([*PARTS, MANIFEST])
    assert (folder_of(root, variant) / "config.json").read_bytes().endswith(b'Kind"}}')


def test_a_folder_of_links_is_a_model(root: Root, cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "blobs", small_model())
    (tmp_path / "snapshot").mkdir()
    for name in PARTS:
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    manifest = publish(root, Variant("local/snapshot", "v1", path=str(tmp_path / "snapshot")), cache)
    assert [file.path for file in manifest.files] == PARTS


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({SHARD: small_model()[SHARD][:-1000]}, f"mine/{SHARD} cannot be loaded .*put the whole model there"),
        ({SHARD: POINTER}, f"mine/{SHARD} cannot be loaded"),
        ({SHARD: None}, f"mine/{SHARD} does not exist, though model.safetensors.index.json names it"),
        ({name: None for name in PARTS if name.endswith(".safetensors")}, r"no \.safetensors files in .*mine"),
        ({"model.safetensors.index.json": b"[]"}, "is no index of weights"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_told(
    root: Root, cache: Path, tmp_path: Path, changed: dict[str, bytes | None], told: str
) -> None:
    files = {**small_model(), **changed}
    write_model(tmp_path / "mine", {name: data for name, data in files.items() if data is not None})
    variant = Variant("local/mine", "v1", path=str(tmp_path / "mine"))
    with pytest.raises(WeightsError, match=told):
        publish(root, variant, cache)
    assert not root.exists(f"weights/{variant.folder}/{MANIFEST}")
    write_model(tmp_path / "mine", small_model())
    publish(root, variant, cache)
    assert contents(folder_of(root, variant))[SHARD] == small_model()[SHARD]
