import io
import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.models.weights import ListedFile, Mismatch, WeightFile, WeightsError, WeightsManifest
from tests.models.hub_server import git_blob

pytestmark = pytest.mark.fast


@given(st.binary(), st.binary())
def test_file_is_verified_by_either_hash(data: bytes, other: bytes) -> None:
    by_sha = ListedFile("a", len(data), sha256=sha256(data).hexdigest())
    by_blob = ListedFile("a", len(data), git_blob=git_blob(data))
    for listed in (by_sha, by_blob):
        assert listed.verify(io.BytesIO(data)) == WeightFile("a", len(data), sha256(data).hexdigest())
        if other != data:
            with pytest.raises(Mismatch):
                listed.verify(io.BytesIO(other))


def test_manifest_survives_a_round_trip() -> None:
    manifest = WeightsManifest("a/b", "1", (WeightFile("x.json", 1, "00"), WeightFile("y/z.json", 2, "11")))
    assert WeightsManifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json", "a/../../evil.json"])
def test_manifest_path_outside_the_folder_is_an_error(path: str) -> None:
    manifest = {"hub_id": "a/b", "revision": "1", "files": [{"path": path, "size": 1, "sha256": "00"}]}
    with pytest.raises(WeightsError, match="outside"):
        WeightsManifest.from_json(json.dumps(manifest))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hub_id": 1, "revision": 2, "files": [3]}'])
def test_invalid_manifest_is_an_error(text: str) -> None:
    with pytest.raises(WeightsError, match="invalid weights manifest"):
        WeightsManifest.from_json(text)
