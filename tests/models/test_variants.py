from hashlib import sha256
from importlib.resources import files

import pytest

from caption_assets.models.variants import QWEN25, SAMPLE, UnknownModel, variant

pytestmark = pytest.mark.fast


def test_the_references_key_names_qwen25() -> None:
    assert variant("qwen") is variant("qwen2.5") is QWEN25


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match=r"'gpt'.*qwen, qwen2\.5, sample"):
        variant("gpt")


def test_revisions_lie_side_by_side() -> None:
    assert QWEN25.folder == f"Qwen--Qwen2.5-VL-7B-Instruct/{QWEN25.revision}"


def test_the_sample_models_revision_is_the_hash_of_its_weights() -> None:
    weights = files("caption_assets.sample") / "model" / "model.safetensors"
    assert sha256(weights.read_bytes()).hexdigest().startswith(SAMPLE.revision), "new weights need a new revision"
    assert len(SAMPLE.revision) == 12
