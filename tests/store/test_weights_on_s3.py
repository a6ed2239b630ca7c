from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish, read_weights_manifest
from caption_assets.models.variants import find_variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.files import MODEL, PARTS, SHARD, contents
from tests.models.hub_server import Fault, HubServer, small_model

pytestmark = pytest.mark.store


@pytest.fixture
def root(s3_url: str) -> Root:
    return Root.open(s3_url)


def test_weights_reach_the_engine_through_the_store(hub: HubServer, root: Root, tmp_path: Path) -> None:
    manifest = publish(root, MODEL, tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == [], "downloads are removed after the upload"
    assert read_weights_manifest(root, MODEL) == manifest
    assert publish(root, MODEL, tmp_path) == manifest
    assert contents(ensure_local(root, MODEL, tmp_path)) == {name: hub.files[name] for name in PARTS}


def test_interrupted_publication_is_resumed(hub: HubServer, root: Root, tmp_path: Path) -> None:
    hub.faults["tokenizer.json"] = [Fault(status=403)]
    with pytest.raises(WeightsError, match="HTTP 403"):
        publish(root, MODEL, tmp_path)
    complete = root.names(f"weights/{MODEL.folder}")
    assert MANIFEST not in complete
    sent = {name: hub.sent[name] for name in complete}
    assert len(sent) >= 2
    publish(root, MODEL, tmp_path)
    assert sent == {name: hub.sent[name] for name in complete}
    assert contents(ensure_local(root, MODEL, tmp_path)) == {name: hub.files[name] for name in PARTS}


def test_corruption_in_the_store_is_detected_and_repaired(hub: HubServer, root: Root, tmp_path: Path) -> None:
    publish(root, MODEL, tmp_path)
    damaged = bytearray(hub.files[SHARD])
    damaged[500] ^= 1
    root.write(f"weights/{MODEL.folder}/{SHARD}", bytes(damaged))
    with pytest.raises(WeightsError, match=rf"s3://.*{SHARD} is damaged.*CAPTION_VERIFY_WEIGHTS=true"):
        ensure_local(root, MODEL, tmp_path)
    publish(root, MODEL, tmp_path, verify=True)
    assert contents(ensure_local(root, MODEL, tmp_path))[SHARD] == hub.files[SHARD]


def test_model_may_be_in_the_store(root: Root, tmp_path: Path) -> None:
    for name, data in small_model().items():
        root.write(f"models/mine/{name}", data)
    variant = find_variant(f"{root.url}/models/mine/", revision="v1")
    manifest = publish(root, variant, tmp_path)
    assert [file.path for file in manifest.files] == PARTS
    changed = b'{"model_type": "qwen3_vl"}'
    root.write("models/mine/config.json", changed)
    assert publish(root, variant, tmp_path).digest != manifest.digest
    assert (ensure_local(root, variant, tmp_path) / "config.json").read_bytes() == changed
