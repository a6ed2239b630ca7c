from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.models.cache import ensure_local
from caption_assets.models.checkpoint import Lora
from caption_assets.models.mirror import content_digest, publish
from caption_assets.models.variants import SAMPLE, Variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.adapters import adapter_files, write_adapter
from tests.models.files import PARTS, SHARD, contents, folder_of, write_model
from tests.models.hub_server import small_model

pytestmark = pytest.mark.fast


def test_bundled_model_needs_no_hub(root: Root, cache: Path) -> None:
    manifest = publish(root, SAMPLE, cache)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.path for file in manifest.files}
    before = (folder_of(root, SAMPLE) / "model.safetensors").stat().st_mtime_ns
    assert publish(root, SAMPLE, cache).digest == manifest.digest
    assert (folder_of(root, SAMPLE) / "model.safetensors").stat().st_mtime_ns == before


def test_changed_folder_is_mirrored_again(root: Root, cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "mine", small_model())
    (tmp_path / "mine" / "extra.txt").write_text("temporary")
    variant = Variant("local/mine", "v1", path=str(tmp_path / "mine"))
    first = publish(root, variant, cache)
    (tmp_path / "mine" / "extra.txt").unlink()
    (tmp_path / "mine" / "config.json").write_bytes(
        b'{"model_type": "qwen2_5_vl", "auto_map": {"AutoModel": "modeling.Kind"}}'
    )
    second = publish(root, variant, cache)
    assert second.digest != first.digest
    assert sorted(contents(folder_of(root, variant))) == sorted([*PARTS, MANIFEST])
    assert (folder_of(root, variant) / "config.json").read_bytes().endswith(b'Kind"}}')


def test_folders_of_the_same_name_and_revision_differ_by_content(root: Root, cache: Path, tmp_path: Path) -> None:
    digests = {}
    for place, template in (("one", b"{{ messages }}"), ("other", b"{{ messages[0] }}"), ("copy", b"{{ messages }}")):
        (tmp_path / place).mkdir()
        write_model(tmp_path / place / "mine", {**small_model(), "chat_template.jinja": template})
        variant = Variant("local/mine", "v1", path=str(tmp_path / place / "mine"))
        publish(root, variant, cache)
        digests[place] = content_digest(root, variant)
    assert digests["one"] == digests["copy"] != digests["other"]


def test_model_with_a_commit_has_no_content_digest(root: Root) -> None:
    assert content_digest(root, SAMPLE) is None


def test_folder_of_links_is_a_model(root: Root, cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "blobs", small_model())
    (tmp_path / "snapshot").mkdir()
    for name in PARTS:
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    manifest = publish(root, Variant("local/snapshot", "v1", path=str(tmp_path / "snapshot")), cache)
    assert [file.path for file in manifest.files] == PARTS


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({SHARD: small_model()[SHARD][:-1000]}, f"cannot load .*mine/{SHARD} .*put the whole model there"),
        ({SHARD: POINTER}, f"cannot load .*mine/{SHARD}"),
        ({SHARD: None}, f"mine/{SHARD} does not exist, though model.safetensors.index.json names it"),
        ({name: None for name in PARTS if name.endswith(".safetensors")}, r"mine has no \.safetensors files"),
        ({"model.safetensors.index.json": b"[]"}, "is not a weights index"),
    ],
)
def test_incomplete_model_folder_is_an_error(
    root: Root, cache: Path, tmp_path: Path, changed: dict[str, bytes | None], message: str
) -> None:
    files = {**small_model(), **changed}
    write_model(tmp_path / "mine", {name: data for name, data in files.items() if data is not None})
    variant = Variant("local/mine", "v1", path=str(tmp_path / "mine"))
    with pytest.raises(WeightsError, match=message):
        publish(root, variant, cache)
    assert not root.exists(f"weights/{variant.folder}/{MANIFEST}")
    write_model(tmp_path / "mine", small_model())
    publish(root, variant, cache)
    assert contents(folder_of(root, variant))[SHARD] == small_model()[SHARD]


def test_training_state_is_not_mirrored(root: Root, cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "out", small_model())
    for folder in ("checkpoint-5", "checkpoint-5/global_step5", "runs"):
        write_model(tmp_path / "out" / folder, {"config.json": b"{}", "tokenizer.json": b"{}"})
    write_model(tmp_path / "out" / "checkpoint-5", {SHARD: small_model()[SHARD]})
    write_model(tmp_path / "out", {"trainer_state.json": b"{}", "optimizer.safetensors": b"no model"})
    manifest = publish(root, Variant("local/out", "v1", path=str(tmp_path / "out")), cache)
    assert [file.path for file in manifest.files] == PARTS


def test_folder_that_needs_remote_code_is_an_error(root: Root, cache: Path, tmp_path: Path) -> None:
    config = b'{"model_type": "molmo2", "architectures": ["Molmo2ForConditionalGeneration"], "auto_map": {}}'
    write_model(tmp_path / "mine", {**small_model(), "config.json": config})
    with pytest.raises(WeightsError, match="/mine needs code from its own repository"):
        publish(root, Variant("local/mine", "v1", path=str(tmp_path / "mine")), cache)
    assert not list(root.files("weights"))


def test_config_overrides_decide_whether_a_model_is_supported(root: Root, cache: Path, tmp_path: Path) -> None:
    config = b'{"model_type": "qwen3_vl", "architectures": ["MyVLForConditionalGeneration"]}'
    write_model(tmp_path / "mine", {**small_model(), "config.json": config})
    variant = Variant("local/mine", "v1", path=str(tmp_path / "mine"))
    with pytest.raises(WeightsError, match=r"vLLM .* does not support .*/mine as a video model"):
        publish(root, variant, cache)
    publish(root, variant, cache, overrides={"architectures": ["Qwen3VLForConditionalGeneration"]})


def test_adapter_given_as_a_model_is_an_error_with_its_base(root: Root, cache: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "mine", {**adapter_files(), "tokenizer.json": b"{}", "optimizer.pt": b""})
    with pytest.raises(
        WeightsError,
        match=r"/mine contains a LoRA adapter, not a model: set CAPTION_LORA to it, and CAPTION_MODEL to the model "
        r"that it was trained on \(caption-assets/sample-qwen2\.5-vl\)",
    ):
        publish(root, Variant("local/mine", "v1", path=str(folder)), cache)


@pytest.mark.parametrize(
    ("missing", "base"),
    [("adapter_config.json", "its base model"), ("adapter_model.safetensors", r"caption-assets/sample-qwen2\.5-vl")],
)
def test_incomplete_adapter_given_as_a_model_is_recognized(
    root: Root, cache: Path, tmp_path: Path, missing: str, base: str
) -> None:
    folder = write_adapter(tmp_path / "mine", {**adapter_files(), "adapter_model.bin": b""})
    (folder / missing).unlink()
    with pytest.raises(WeightsError, match=rf"contains a LoRA adapter, not a model: .*\({base}\)"):
        publish(root, Variant("local/mine", "v1", path=str(folder)), cache)


def test_only_the_adapters_files_are_mirrored(root: Root, cache: Path, tmp_path: Path) -> None:
    files = adapter_files()
    folder = write_adapter(tmp_path / "out", {**files, "tokenizer.json": b"{}", "optimizer.pt": b"", "README.md": b""})
    write_adapter(folder / "checkpoint-5", files)
    lora = Lora("local/out", "v1", path=str(folder))
    manifest = publish(root, lora, cache)
    assert [file.path for file in manifest.files] == sorted(files)
    local = ensure_local(root, lora, cache)
    assert contents(local) == files
    write_adapter(folder, adapter_files(seed=2))
    assert publish(root, lora, cache).digest != manifest.digest


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"adapter_model.safetensors": b"version https://git-lfs"}, r"cannot load .*adapter_model\.safetensors"),
        ({"adapter_config.json": b'{"peft_type": "IA3"}'}, "is not a LoRA adapter"),
        ({"adapter_model.safetensors": None}, r"/mine has no adapter_model\.safetensors"),
        ({"adapter_model.safetensors": None, "adapter_model.bin": b""}, "pickles are not loaded"),
    ],
)
def test_incomplete_adapter_folder_is_an_error(
    root: Root, cache: Path, tmp_path: Path, changed: dict[str, bytes | None], reason: str
) -> None:
    files = {**adapter_files(), **changed}
    folder = write_adapter(tmp_path / "mine", {name: data for name, data in files.items() if data is not None})
    lora = Lora("local/mine", "v1", path=str(folder))
    with pytest.raises(WeightsError, match=reason):
        publish(root, lora, cache)
    assert not root.exists(f"weights/{lora.folder}/{MANIFEST}")
