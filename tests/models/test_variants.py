from hashlib import sha256
from importlib.resources import files

import pytest

from caption_assets.models.variants import QWEN3, QWEN25, SAMPLE, UnknownModel, find_variant

pytestmark = pytest.mark.fast


def test_the_references_key_names_qwen25() -> None:
    assert find_variant("qwen") is find_variant("qwen2.5") is QWEN25
    assert find_variant("qwen3") is QWEN3


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match=r"'gpt'.*qwen, qwen2\.5, qwen3, sample"):
        find_variant("gpt")


def test_a_fine_tune_by_hub_id_shares_the_sizes_of_its_base() -> None:
    found = find_variant("someone/Qwen-finetune", "abc123", like="qwen3")
    assert (found.hub_id, found.revision, found.pixels) == ("someone/Qwen-finetune", "abc123", QWEN3.pixels)
    assert found.presized


def test_a_model_in_a_folder_is_named_by_it() -> None:
    found = find_variant("/models/my-model", "v1")
    assert (found.path, found.hub_id, found.folder) == ("/models/my-model", "local/my-model", "local--my-model/v1")
    assert not found.presized


def test_a_model_may_lie_in_object_storage() -> None:
    found = find_variant("s3://bucket/models/my-model/", "v1", like="qwen2.5")
    assert (found.path, found.folder) == ("s3://bucket/models/my-model", "local--my-model/v1")


@pytest.mark.parametrize(
    ("model", "revision", "like", "remedy"),
    [
        ("someone/model", None, None, "needs CAPTION_MODEL_REVISION"),
        ("/models/x", "a/../b", None, "needs CAPTION_MODEL_REVISION"),
        ("someone/model", "abc", "gpt", "choose one of"),
        ("qwen3", "abc", None, "pinned"),
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
