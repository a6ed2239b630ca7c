from pathlib import Path

import pytest

from caption_assets.models.variants import SAMPLE
from caption_assets.models.weights import (
    WeightFile,
    WeightsError,
    WeightsManifest,
    describe,
)

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json"])
def test_a_manifest_cannot_lead_out_of_its_folder(path: str) -> None:
    manifest = WeightsManifest("a/b", "1", (WeightFile(path, 1, "00"),))
    with pytest.raises(WeightsError, match="outside"):
        WeightsManifest.from_json(manifest.to_json())


def test_a_folder_without_safetensors_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(WeightsError, match=r"no \.safetensors"):
        describe(tmp_path, SAMPLE)
