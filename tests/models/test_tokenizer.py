from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from caption_assets.models.cache import CacheConfig
from caption_assets.models.tokenizer import find_tokenizer, local_tokenizer
from caption_assets.models.variants import UnknownModel
from caption_assets.models.weights import WeightsError
from caption_assets.store.root import Root
from tests.models.hub_server import COMMIT, HUB_ID, HubServer

FILES = {"tokenizer.json": b'{"version": "1.0"}', "tokenizer_config.json": b'{"model_max_length": 77}'}


@pytest.fixture
def config(cache: Path) -> CacheConfig:
    return CacheConfig(cache)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("t5", None, r"unknown tokenizer 't5': give a Hub id \(org/name, or org/name/folder\) or a folder"),
        ("org/name/../..", COMMIT, "unknown tokenizer"),
        ("google/umt5-xxl", None, r"needs CAPTION_EXPORT_TOKENIZER_REVISION \(it is None\): its commit on the Hub"),
    ],
)
def test_tokenizer_that_cannot_be_resolved_is_an_error(name: str, revision: str | None, message: str) -> None:
    with pytest.raises(UnknownModel, match=message):
        find_tokenizer(name, revision)


@pytest.mark.fast
def test_tokenizers_of_a_repository_have_separate_folders() -> None:
    folders = {find_tokenizer(f"org/name{sub}", COMMIT).folder for sub in ("", "/tokenizer", "/tokenizer_2")}
    assert folders == {f"tokenizer--org--name{sub}/{COMMIT}" for sub in ("", "--tokenizer", "--tokenizer_2")}


@pytest.mark.fast
def test_folder_is_copied_to_the_root_for_other_machines(tmp_path: Path, root: Root, config: CacheConfig) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    for name, data in {**FILES, "spiece.model": b"not needed"}.items():
        (folder / name).write_bytes(data)
    tokenizer = find_tokenizer(str(folder), None)
    assert read(local_tokenizer(root, tokenizer, config)) == FILES
    assert root.read(f"weights/{tokenizer.folder}/tokenizer.json") == FILES["tokenizer.json"]
    (folder / "tokenizer.json").write_bytes(b"{}")
    assert read(local_tokenizer(root, tokenizer, config))["tokenizer.json"] == b"{}"


@pytest.mark.store
@pytest.mark.parametrize("sub", ["", "/text/tokenizer"])
def test_tokenizer_of_the_hub_is_mirrored_and_read_once(
    hub: HubServer, root: Root, config: CacheConfig, monkeypatch: pytest.MonkeyPatch, sub: str
) -> None:
    hub.files = {f"{sub}/{name}".removeprefix("/"): data for name, data in FILES.items()}
    hub.files["model.safetensors"] = b"not needed"
    tokenizer = find_tokenizer(HUB_ID + sub, COMMIT)
    assert read(local_tokenizer(root, tokenizer, config)) == FILES
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elsewhere = CacheConfig(config.cache.with_name("another machine"))
    assert read(local_tokenizer(root, tokenizer, elsewhere)) == FILES
    assert not hub.reads("model.safetensors")


@pytest.mark.store
def test_repository_without_tokenizer_json_names_the_remedy(hub: HubServer, root: Root, config: CacheConfig) -> None:
    hub.files = {"spiece.model": b"sentencepiece"}
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json: write it with AutoTokenizer\.from_pretrained"):
        local_tokenizer(root, find_tokenizer(HUB_ID, COMMIT), config)
    hub.files = {f"{folder}/tokenizer.json": b"{}" for folder in ("tokenizer", "tokenizer_2")}
    wanted = re.escape(f"give one of its folders, as in {HUB_ID}/tokenizer (tokenizer, tokenizer_2)")
    with pytest.raises(WeightsError, match=wanted):
        local_tokenizer(root, find_tokenizer(HUB_ID, COMMIT), config)


@pytest.mark.store
def test_gated_tokenizer_names_the_token(hub: HubServer, root: Root, config: CacheConfig) -> None:
    hub.token = "another"
    with pytest.raises(WeightsError, match=r"the Hub denies access to .* \(HTTP 401\): set HF_TOKEN"):
        local_tokenizer(root, find_tokenizer(HUB_ID, COMMIT), config)


@pytest.mark.store
def test_name_of_a_commit_is_refused_with_the_commit(hub: HubServer, root: Root, config: CacheConfig) -> None:
    hub.files = dict(FILES)
    with pytest.raises(WeightsError, match=f"set CAPTION_EXPORT_TOKENIZER_REVISION to {COMMIT}"):
        local_tokenizer(root, find_tokenizer(HUB_ID, "main"), config)
