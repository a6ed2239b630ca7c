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


def test_the_references_key_names_qwen25() -> None:
    assert find_variant("qwen") is find_variant("qwen2.5") is QWEN25
    assert find_variant("qwen3") is QWEN3


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match=r"'gpt'.*qwen, qwen2\.5, .*qwen3, .*sample, skycaptioner") as raised:
        find_variant("gpt")
    assert all(key in str(raised.value) for key in VARIANTS)


KEYS = [
    *("qwen2.5-3b", "qwen2.5-7b", "qwen2.5-32b", "qwen2.5-72b", "qwen3-4b", "qwen3-8b", "qwen3-30b-a3b", "qwen3-32b"),
    *("qwen3.5-0.8b", "qwen3.5-2b", "qwen3.5-4b", "qwen3.5-9b", "qwen3.5-27b", "qwen3.5-35b-a3b", "qwen3.5-122b-a10b"),
    *("qwen3.5-397b-a17b", "qwen3.6-27b", "qwen3.6-35b-a3b", "glm-4.6v-flash", "internvl3.5-8b", "skycaptioner"),
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_names_a_model_at_one_commit(key: str) -> None:
    revision = "5" * 40 if VARIANTS[key].revision == UNPINNED else None
    found = find_variant(key, revision)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", found.hub_id)
    assert re.fullmatch("[0-9a-f]{40}", found.revision)
    assert found.license
    assert 0 < found.quantisable < found.parameters


def test_no_two_models_share_a_commit_or_a_name() -> None:
    revisions = {variant.hub_id: variant.revision for variant in VARIANTS.values()}
    assert all(revisions[variant.hub_id] == variant.revision for variant in VARIANTS.values())
    pinned = [revision for revision in revisions.values() if revision != UNPINNED]
    assert len(set(pinned)) == len(pinned)


def test_the_size_of_the_default_is_part_of_an_alias() -> None:
    assert find_variant("qwen2.5-7b") is QWEN25
    assert find_variant("qwen3-8b") is QWEN3


@pytest.mark.parametrize("key", ["skycaptioner", "qwen3.5-397b-a17b"])
def test_a_key_whose_commit_is_not_known_asks_for_it(key: str) -> None:
    with pytest.raises(UnknownModel, match=r"has no pinned revision: set CAPTION_MODEL_REVISION .*/commits/main"):
        find_variant(key)
    assert find_variant(key, "5" * 40).folder.endswith("/" + "5" * 40)


def test_the_hub_id_of_a_key_without_its_revision_names_the_key() -> None:
    with pytest.raises(UnknownModel, match=r"CAPTION_MODEL_REVISION.*or set CAPTION_MODEL=qwen2\.5-72b"):
        find_variant("Qwen/Qwen2.5-VL-72B-Instruct")


def test_a_fine_tune_by_hub_id_shares_the_sizes_of_its_base() -> None:
    found = find_variant("someone/Qwen-finetune", "abc123", like="qwen3")
    assert (found.hub_id, found.revision, found.pixels) == ("someone/Qwen-finetune", "abc123", QWEN3.pixels)


def test_a_model_in_a_folder_is_named_by_it() -> None:
    found = find_variant("/models/my-model", "v1")
    assert (found.path, found.hub_id) == ("/models/my-model", "local/my-model")
    assert (found.dtype, found.max_model_len) == ("auto", None)


def test_a_model_may_lie_in_object_storage() -> None:
    found = find_variant("s3://bucket/models/my-model/", "v1", like="qwen2.5")
    assert (found.path, found.hub_id) == ("s3://bucket/models/my-model", "local/my-model")


def test_folders_of_one_name_have_mirrors_of_their_own() -> None:
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
        ("qwen3-4b", None, "qwen3", "leave CAPTION_MODEL_LIKE out"),
        ("skycaptioner", "a/../b", None, "CAPTION_MODEL_REVISION"),
        ("../../etc/x/y", None, None, "needs CAPTION_MODEL_REVISION"),
    ],
)
def test_a_model_that_is_named_by_halves_is_told(
    model: str, revision: str | None, like: str | None, remedy: str
) -> None:
    with pytest.raises(UnknownModel, match=remedy):
        find_variant(model, revision, like)


def test_revisions_lie_side_by_side() -> None:
    assert QWEN25.folder == f"Qwen--Qwen2.5-VL-7B-Instruct/{QWEN25.revision}"


def test_the_sample_models_revision_is_the_hash_of_its_weights() -> None:
    weights = files("caption_assets.sample") / "model" / "model.safetensors"
    assert sha256(weights.read_bytes()).hexdigest().startswith(SAMPLE.revision), "new weights need a new revision"
    assert len(SAMPLE.revision) == 12
