from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.models.cache import ensure_local
from caption_assets.models.checkpoint import Lora
from caption_assets.models.mirror import publish
from caption_assets.models.variants import Variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.adapters import adapter_files
from tests.models.files import MODEL, SHARD, contents, flip_a_bit
from tests.models.hub_server import COMMIT, HUB_ID, Fault, HubServer, small_model

pytestmark = pytest.mark.store

LORA = Lora(HUB_ID, COMMIT)
WEIGHTS = "adapter_model.safetensors"
CONFIG = b'{"model_type": "KeyeVL1_5", "architectures": ["KeyeVL1_5ForConditionalGeneration"], "auto_map": {}}'


@pytest.fixture
def files(hub: HubServer) -> dict[str, bytes]:
    """The files of an adapter; the hub also has other files of a training run."""
    found = adapter_files(rank=64)
    hub.files = {**found, "README.md": b"", "tokenizer.json": b"{}", "optimizer.pt": b"", ".gitattributes": b""}
    hub.files |= {f"checkpoint-9/{name}": data for name, data in found.items()}
    return found


def folder_of(root: Root) -> Path:
    return Path(root.full(f"weights/{LORA.folder}"))


def test_only_the_adapters_files_are_mirrored(hub: HubServer, files: dict[str, bytes], root: Root, cache: Path) -> None:
    manifest = publish(root, LORA, cache)
    assert [file.path for file in manifest.files] == sorted(files)
    assert contents(ensure_local(root, LORA, cache)) == files


def test_damaged_adapter_is_downloaded_again(hub: HubServer, files: dict[str, bytes], root: Root, cache: Path) -> None:
    hub.faults[WEIGHTS] = [Fault(flip=900)]
    publish(root, LORA, cache)
    assert contents(folder_of(root))[WEIGHTS] == files[WEIGHTS]
    flip_a_bit(folder_of(root) / WEIGHTS)
    with pytest.raises(WeightsError, match=f"{WEIGHTS} .*set CAPTION_VERIFY_WEIGHTS=true"):
        ensure_local(root, LORA, cache)
    publish(root, LORA, cache, verify=True)
    assert contents(ensure_local(root, LORA, cache)) == files


def test_persistently_damaged_adapter_leaves_no_manifest(
    hub: HubServer, files: dict[str, bytes], root: Root, cache: Path
) -> None:
    hub.faults[WEIGHTS] = [Fault(flip=900)] * 9
    with pytest.raises(WeightsError, match=f"{WEIGHTS} is damaged"):
        publish(root, LORA, cache)
    assert not (folder_of(root) / MANIFEST).exists()


def test_broken_download_of_an_adapter_resumes(
    hub: HubServer, files: dict[str, bytes], root: Root, cache: Path
) -> None:
    hub.faults[WEIGHTS] = [Fault(cut=70_000)]
    publish(root, LORA, cache)
    assert contents(folder_of(root))[WEIGHTS] == files[WEIGHTS]
    assert [request.range for request in hub.reads(WEIGHTS) if COMMIT not in request.path] == [None, "bytes=65536-"]


def test_branch_of_an_adapter_is_an_error_with_its_commit(
    hub: HubServer, files: dict[str, bytes], root: Root, cache: Path
) -> None:
    with pytest.raises(WeightsError, match=f"CAPTION_LORA_REVISION to {COMMIT}"):
        publish(root, Lora(HUB_ID, "main"), cache)
    with pytest.raises(WeightsError, match="set CAPTION_LORA_REVISION to one of the commits"):
        publish(root, Lora(HUB_ID, "deadbeef"), cache)


def test_adapter_given_as_a_model_is_an_error_with_its_base(
    hub: HubServer, files: dict[str, bytes], root: Root, cache: Path
) -> None:
    with pytest.raises(
        WeightsError, match=r"contains a LoRA adapter, not a model: .*\(caption-assets/sample-qwen2\.5-vl\)"
    ):
        publish(root, MODEL, cache)
    assert hub.sent[WEIGHTS] == 0


def test_model_given_as_an_adapter_is_an_error(hub: HubServer, root: Root, cache: Path) -> None:
    with pytest.raises(WeightsError, match="it contains a model; set CAPTION_MODEL to it"):
        publish(root, LORA, cache)


def test_model_that_needs_remote_code_is_rejected_before_its_weights_are_downloaded(
    hub: HubServer, root: Root, cache: Path
) -> None:
    hub.files["config.json"] = CONFIG
    with pytest.raises(WeightsError, match=f"{HUB_ID}/tree/{COMMIT} needs code from its own repository"):
        publish(root, MODEL, cache)
    assert hub.sent["config.json"] == len(CONFIG)
    assert hub.sent[SHARD] == 0
    assert not root.exists(f"weights/{MODEL.folder}")


def test_training_checkpoints_are_not_downloaded(hub: HubServer, root: Root, cache: Path) -> None:
    hub.files |= {f"checkpoint-500/{name}": data for name, data in small_model().items()}
    manifest = publish(root, Variant(HUB_ID, COMMIT), cache)
    assert not [file.path for file in manifest.files if "/" in file.path]
    assert not [request for request in hub.requests if "checkpoint-500/" in request.path]
