import re
from hashlib import sha256
from importlib.resources import files

import pytest

from caption_assets.models.variants import (
    QWEN3,
    QWEN25,
    SAMPLE,
    UNPINNED,
    VARIANTS,
    UnknownModel,
    find_variant,
)

pytestmark = pytest.mark.fast


def test_qwen_is_an_alias_of_qwen25() -> None:
    assert find_variant("qwen") is find_variant("qwen2.5") is QWEN25
    assert find_variant("qwen3") is QWEN3


def test_unknown_key_is_an_error_with_the_known_keys() -> None:
    with pytest.raises(UnknownModel, match=r"'gpt'.*qwen, qwen2\.5, .*qwen3, .*sample, skycaptioner") as raised:
        find_variant("gpt")
    assert all(key in str(raised.value) for key in VARIANTS)


KEYS = [
    *("qwen2.5-3b", "qwen2.5-7b", "qwen2.5-32b", "qwen2.5-72b", "qwen3-4b", "qwen3-8b", "qwen3-30b-a3b", "qwen3-32b"),
    *("qwen3.5-0.8b", "qwen3.5-2b", "qwen3.5-4b", "qwen3.5-9b", "qwen3.5-27b", "qwen3.5-35b-a3b", "qwen3.5-122b-a10b"),
    *("qwen3.5-397b-a17b", "qwen3.6-27b", "qwen3.6-35b-a3b", "glm-4.6v-flash", "internvl3.5-8b", "skycaptioner"),
]


@pytest.mark.parametrize("key", KEYS)
def test_key_has_a_hub_id_and_a_commit(key: str) -> None:
    revision = "5" * 40 if VARIANTS[key].revision == UNPINNED else None
    found = find_variant(key, revision)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", found.hub_id)
    assert re.fullmatch("[0-9a-f]{40}", found.revision)
    assert found.license
    assert 0 < found.quantizable < found.parameters


def test_models_have_unique_commits() -> None:
    revisions = {variant.hub_id: variant.revision for variant in VARIANTS.values()}
    assert all(revisions[variant.hub_id] == variant.revision for variant in VARIANTS.values())
    pinned = [revision for revision in revisions.values() if revision != UNPINNED]
    assert len(set(pinned)) == len(pinned)


def test_default_sizes_have_aliases() -> None:
    assert find_variant("qwen2.5-7b") is QWEN25
    assert find_variant("qwen3-8b") is QWEN3


@pytest.mark.parametrize("key", ["skycaptioner", "qwen3.5-397b-a17b"])
def test_key_without_a_pinned_commit_needs_a_revision(key: str) -> None:
    with pytest.raises(UnknownModel, match=r"has no pinned revision: set CAPTION_MODEL_REVISION .*/commits/main"):
        find_variant(key)
    assert find_variant(key, "5" * 40).folder.endswith("/" + "5" * 40)


def test_hub_id_without_revision_is_an_error_with_its_key() -> None:
    with pytest.raises(UnknownModel, match=r"CAPTION_MODEL_REVISION.*or set CAPTION_MODEL to qwen2\.5-72b"):
        find_variant("Qwen/Qwen2.5-VL-72B-Instruct")


def test_fine_tune_has_the_frame_sizes_of_its_base() -> None:
    found = find_variant("someone/Qwen-finetune", "abc123", like="qwen3")
    assert (found.hub_id, found.revision, found.pixels) == ("someone/Qwen-finetune", "abc123", QWEN3.pixels)


def test_model_in_a_folder_has_its_name() -> None:
    found = find_variant("/models/my-model", "v1")
    assert (found.path, found.hub_id) == ("/models/my-model", "local/my-model")
    assert (found.dtype, found.max_model_len) == ("auto", None)


def test_model_may_be_in_object_storage() -> None:
    found = find_variant("s3://bucket/models/my-model/", "v1", like="qwen2.5")
    assert (found.path, found.hub_id) == ("s3://bucket/models/my-model", "local/my-model")


def test_folders_of_the_same_name_have_separate_mirrors() -> None:
    one, same, other = (find_variant(path, "v1").folder for path in ("/a/model", "/b/../a/model", "/b/model"))
    assert re.fullmatch(r"local--model-[0-9a-f]{8}/v1", one)
    assert one == same != other


@pytest.mark.parametrize(
    ("model", "revision", "like", "remedy"),
    [
        ("someone/model", None, None, "needs CAPTION_MODEL_REVISION"),
        ("/models/x", "a/../b", None, "needs CAPTION_MODEL_REVISION"),
        ("/models/x", "..", None, "needs CAPTION_MODEL_REVISION"),
        ("skycaptioner", ".", None, "CAPTION_MODEL_REVISION"),
        ("someone/model", "abc", "gpt", "choose one of"),
        ("qwen3", "abc", None, "pinned"),
        ("qwen3-4b", None, "qwen3", "unset CAPTION_MODEL_LIKE"),
        ("skycaptioner", "a/../b", None, "CAPTION_MODEL_REVISION"),
        ("../../etc/x/y", None, None, "needs CAPTION_MODEL_REVISION"),
    ],
)
def test_incomplete_model_setting_is_an_error(model: str, revision: str | None, like: str | None, remedy: str) -> None:
    with pytest.raises(UnknownModel, match=remedy):
        find_variant(model, revision, like)


def test_mirror_folder_contains_the_revision() -> None:
    assert QWEN25.folder == f"Qwen--Qwen2.5-VL-7B-Instruct/{QWEN25.revision}"


def test_sample_revision_is_the_hash_of_its_weights() -> None:
    weights = files("caption_assets.sample") / "model" / "model.safetensors"
    assert sha256(weights.read_bytes()).hexdigest().startswith(SAMPLE.revision), "new weights need a new revision"
    assert len(SAMPLE.revision) == 12
