from __future__ import annotations

import itertools
import logging
import re
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from caption_assets.errors import CaptionAssetsError
from caption_assets.sources.shard import ShardError, list_shards
from caption_assets.store.access import Access
from caption_assets.store.failure import StoreError, url_has_credentials
from caption_assets.store.root import Root
from caption_assets.store.span import Span
from caption_assets.store.tables import read_captions
from tests.stages import STAGE1
from tests.store.conftest import StartProxy
from tests.store.fault_proxy import Refusal

TWO_ATTEMPTS = Access(attempts=2)
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY",
    "AWS_SECRET_ACCESS_KEY": "planted/secret",
    "AWS_SESSION_TOKEN": "planted-token",
}
USES: dict[str, Callable[[Root], object]] = {
    "read": lambda root: root.read("deep/file"),
    "write": lambda root: root.write("deep/file", b"x"),
    "create": lambda root: root.create("deep/file", b"x"),
    "list": lambda root: root.names("deep"),
    "look up": lambda root: root.exists("deep/file"),
    "remove": lambda root: root.remove("deep/file"),
    "copy": lambda root: root.download("deep/file", Path("/dev/null")),
    "check": lambda root: root.check_writable("CAPTION_ROOT"),
    "age": lambda root: root.age("deep/file"),
    "table": lambda root: read_captions(root, STAGE1.name, "s"),
    "clip": lambda root: Span(f"{root.url}/clip.mp4", 0, 9, access=root.access).read(),
}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/prefix", False),
        ("s3://bucket/who@where/50%?.mp4", False),
        ("/home/me@here/clips", False),
        ("who@where.mp4", False),
        ("s3://bucket/a?monkey=1", False),
        ("https://console/browse?key=", False),
        ("https://host/a?sv=1&sig=1", True),
        ("https://host/a?X-Goog-Signature=1", True),
        ("s3://key:secret@bucket/prefix", True),
        ("s3://key@bucket", True),
        ("https://host/a?X-Amz-Signature=1", True),
        ("https://host/a?x=1&AWSAccessKeyId=1", True),
        ("s3://bucket?secret=1", True),
        ("//key:secret@host", True),
    ],
)
def test_urls_with_credentials_are_recognized(url: str, expected: bool) -> None:
    assert url_has_credentials(url) is expected


@pytest.mark.fast
@pytest.mark.parametrize("url", ["s3://AKIAPLANTED:planted@bucket/x", "s3://bucket/x?key=AKIAPLANTED&secret=planted"])
def test_root_url_with_credentials_is_an_error_without_them(url: str) -> None:
    with pytest.raises(StoreError, match="contains credentials") as refused:
        Root.open(url)
    assert "planted" not in str(refused.value).lower()


def failures_of(root: Root, *uses: str) -> dict[str, str]:
    """Error messages of concurrent uses of a root, by use."""

    def failure(use: str) -> str:
        with pytest.raises(StoreError) as failed:
            USES[use](root)
        return str(failed.value)

    with ThreadPoolExecutor(len(uses)) as pool:
        return dict(zip(uses, pool.map(failure, uses), strict=True))


@pytest.mark.store
@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [
        (Refusal(403, "AccessDenied"), "access denied: allow the request in the policy"),
        (Refusal(403, "InvalidAccessKeyId"), "unknown access key: check AWS_ACCESS_KEY_ID"),
        (Refusal(403, "ExpiredToken"), "the session token has expired: get new credentials"),
    ],
)
def test_refusal_is_an_error_with_the_path_and_a_remedy(
    s3_url: str, start_proxy: StartProxy, refusal: Refusal, remedy: str
) -> None:
    start_proxy(itertools.repeat(refusal))
    without_code = "the store rejects these credentials or denies access: check them and their policy"
    for use, message in failures_of(Root.open(s3_url), *USES).items():
        assert re.search(rf"{s3_url}\b.*[:(] ?({remedy}|{without_code})", message), (use, message)


@pytest.mark.store
def test_missing_bucket_differs_from_a_missing_file(s3_url: str) -> None:
    uses = sorted(USES.keys() - {"look up", "remove"})  # these return False and do nothing
    for use, message in failures_of(Root.open("s3://no-such-bucket/x"), *uses).items():
        assert re.search(r"s3://no-such-bucket/x\b.*[:(] ?there is no such bucket: create it", message), (use, message)


@pytest.mark.store
def test_unreachable_store_is_an_error_with_its_address(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for use, message in failures_of(Root.open(s3_url, TWO_ATTEMPTS), *USES).items():
        expected = rf"{s3_url}\b.*check AWS_ENDPOINT_URL, the network .*\(server: http://127.0.0.1:1\)"
        assert re.search(expected, message), (use, message)


@pytest.mark.store
def test_missing_credentials_are_an_error_with_a_remedy(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLANTED:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreError, match="no credentials found: set AWS_ACCESS_KEY_ID"):
        Root.open(s3_url).read("file")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTEDKEY")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match="incomplete credentials"):
        Root.open(s3_url).read("file")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match="there is no such profile: correct AWS_PROFILE"):
        Root.open(s3_url).read("file")


@pytest.mark.store
@pytest.mark.parametrize("url", ["s3://no-such-bucket/shards", "s3://no/such:bucket"])
def test_missing_source_bucket_is_an_error_with_its_setting(s3_url: str, url: str) -> None:
    with pytest.raises(ShardError, match=rf"(CAPTION_SOURCE is|the source) '{url}'.*(bucket|CAPTION_SOURCE)"):
        list_shards(Root.open(url))


@pytest.mark.store
@pytest.mark.parametrize("server", ["refuses", "fails", "is unreachable", "has no such bucket"])
def test_errors_and_logs_contain_no_secrets(
    s3_url: str, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, server: str
) -> None:
    responses = {"refuses": Refusal(403, "SignatureDoesNotMatch"), "fails": Refusal(500, "InternalError")}
    start_proxy(itertools.repeat(responses.get(server)))
    if server == "is unreachable":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.INFO)
    root = Root.open("s3://no-such-bucket/x" if server == "has no such bucket" else s3_url, TWO_ATTEMPTS)
    messages = []
    for use in USES.values():
        try:
            use(root)
        except CaptionAssetsError as error:
            messages.append("".join(traceback.format_exception(error)))
    assert len(messages) > 8
    for secret in PLANTED.values():
        assert secret not in "\n".join([*messages, caplog.text])
