import pickle
from urllib.parse import urlsplit

import pytest
from s3fs import S3FileSystem

from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.span import Span

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:9000")
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("access", "address"),
    [
        (STANDARD, "http://store.example:9000/bucket/a/b"),
        (Access(path_style=True), "http://store.example:9000/bucket/a/b"),
        (Access(path_style=False), "http://bucket.store.example:9000/a/b"),
    ],
)
def test_bucket_is_part_of_the_path_or_the_host(access: Access, address: str) -> None:
    root = Root.open("s3://bucket/a", access)
    assert urlsplit(root.fs.sign(root.full("b")))._replace(query="").geturl() == address


def test_root_and_its_pickled_spans_share_a_file_system() -> None:
    access = Access(path_style=True)
    span = pickle.loads(pickle.dumps(Span("s3://bucket/a/b", 0, 1, access=access)))
    assert span.access.filesystem("s3") is Root.open("s3://bucket/a", access).fs
    assert span.access.filesystem("s3") is not Root.open("s3://bucket/a").fs


@pytest.mark.parametrize("url", ["http://AKIAPLANTED:planted@store.example", "AKIAPLANTED:planted", "planted:9000"])
def test_invalid_endpoint_is_an_error_without_its_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(StoreError, match=r"^AWS_ENDPOINT_URL (contains credentials|is not the URL)") as refused:
        Root.open("s3://bucket/a")
    assert "planted" not in str(refused.value).lower()
