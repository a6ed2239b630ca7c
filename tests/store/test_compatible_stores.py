"""S3-compatible stores: unsupported requests, permissions, credentials and profiles."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import boto3
import pytest
from s3fs import S3FileSystem

from caption_assets.models.mirror import publish
from caption_assets.models.variants import find_variant
from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.sources.listing import list_clips
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard, list_shards
from caption_assets.store import s3
from caption_assets.store.access import Access
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox
from tests.models.hub_server import small_model
from tests.store.conftest import StartProxy
from tests.store.fault_proxy import Refusal, Request
from tests.store.refusals import (
    BULK_DELETE_REFUSALS,
    CHECKSUM_REFUSALS,
    has_checksum,
    is_bulk_delete,
    is_of,
    keys_per_bucket,
    public,
    requester_pays,
    without_bulk_delete,
    without_checksums,
)
from tests.videos import counting_video

pytestmark = pytest.mark.store


def configure(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Write a configuration file for botocore."""
    file = folder / "aws-config"
    file.write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def two_profiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The profiles ``reader`` and ``writer``, with access keys of these names; the environment has other keys."""
    if request.config.getoption("--s3-server") != "moto":
        pytest.skip("this server rejects the keys of the profiles")
    profiles = ("reader", "writer")
    keys = "[profile {0}]\naws_access_key_id = {0}\naws_secret_access_key = planted-{0}\nregion = us-east-1\n"
    configure(monkeypatch, tmp_path, "".join(map(keys.format, profiles)))


def bucket_of(url: str) -> str:
    return url.split("/")[2]


@pytest.fixture
def source_url(s3_url: str) -> str:
    """A second bucket beside that of ``s3_url``."""
    bucket = f"{bucket_of(s3_url)}-source"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/shards"


@pytest.mark.parametrize("store", CHECKSUM_REFUSALS)
def test_store_without_the_new_checksums_is_supported(
    s3_url: str, start_proxy: StartProxy, tmp_path: Path, store: str
) -> None:
    proxy = start_proxy(rule=without_checksums(CHECKSUM_REFUSALS[store]))
    root = Root.open(s3_url)
    root.check_writable("CAPTION_ROOT")
    root.write("deep/table", b"rows")
    (tmp_path / "file").write_bytes(b"weights")
    root.upload("deep/file", tmp_path / "file")
    root.download("deep/file", tmp_path / "copy")
    assert root.create("deep/lease", b"mine")
    assert (root.read("deep/table"), (tmp_path / "copy").read_bytes()) == (b"rows", b"weights")
    root.remove("deep/lease")
    root.remove_folder("deep")
    assert root.names("deep") == []
    assert [request.target for request in proxy.received if has_checksum(request) and not is_bulk_delete(request)] == []


def test_multipart_upload_has_no_new_checksums(s3_url: str, start_proxy: StartProxy, tmp_path: Path) -> None:
    proxy = start_proxy(rule=without_checksums(Refusal(400, "InvalidArgument")))
    (tmp_path / "file").write_bytes(bytes(101 << 20))  # s3fs sends more than 100 MiB in parts
    root = Root.open(s3_url)
    root.upload("file", tmp_path / "file")
    assert root.fs.size(root.full("file")) == 101 << 20
    assert any("uploadId" in request.target for request in proxy.received)


@pytest.mark.parametrize("where", ["variable", "file"])
def test_users_checksum_settings_are_respected(
    s3_url: str, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    if where == "variable":
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    else:
        configure(monkeypatch, tmp_path, "[default]\nrequest_checksum_calculation = when_supported\n")
    proxy = start_proxy()
    root = Root.open(s3_url)
    root.write("file", b"data")
    root.read("file")
    assert [request.method for request in proxy.received if has_checksum(request)] == ["PUT"]


@pytest.mark.parametrize("store", BULK_DELETE_REFUSALS)
def test_objects_are_deleted_singly_in_stores_without_bulk_delete(
    s3_url: str, start_proxy: StartProxy, store: str
) -> None:
    root = Root.open(s3_url)
    for number in range(3):
        root.write(f"folder/deep/{number} & <more>", b"data")
    root.write("folder-beside", b"data")
    bucket, prefix = root.path.split("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/folder/")  # a folder marker, as consoles write
    start_proxy(rule=without_bulk_delete(BULK_DELETE_REFUSALS[store]))
    Root.open(s3_url).remove_folder("folder")
    assert root.names("") == ["folder-beside"]


def test_bulk_deletes_are_split(s3_url: str, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "BULK_DELETE", 2)
    root = Root.open(s3_url)
    for number in range(5):
        root.write(f"folder/{number}", b"data")
    proxy = start_proxy()
    Root.open(s3_url).remove_folder("folder")
    assert root.names("folder") == []
    assert [request.method for request in proxy.received if request.method != "GET"] == ["POST"] * 3


def partial_bulk_delete(url: str) -> Refusal:
    """The response of a partial bulk delete, which names the object that it did not delete."""
    key = f"{url.split('/', 3)[3]}/folder/a"
    error = f"<Error><Key>{key}</Key><Code>InternalError</Code><Message>No.</Message></Error>"
    return Refusal(200, "", text=f"<DeleteResult>{error}</DeleteResult>")


@pytest.mark.parametrize("name", ["a", "another"])
def test_objects_left_by_a_bulk_delete_are_deleted_singly(s3_url: str, start_proxy: StartProxy, name: str) -> None:
    root = Root.open(s3_url)
    root.write(f"folder/{name}", b"data")
    start_proxy(rule=lambda request: partial_bulk_delete(s3_url) if is_bulk_delete(request) else None)
    Root.open(s3_url).remove_folder("folder")
    assert root.names("folder") == []


def test_failed_delete_is_an_error(s3_url: str, start_proxy: StartProxy) -> None:
    Root.open(s3_url).write("folder/a", b"data")

    def rule(request: Request) -> Refusal | None:
        if request.method == "DELETE":
            return Refusal(403, "AccessDenied")
        return partial_bulk_delete(s3_url) if is_bulk_delete(request) else None

    start_proxy(rule=rule)
    with pytest.raises(StoreError, match=rf"cannot remove {s3_url}/folder: access denied"):
        Root.open(s3_url).remove_folder("folder")


def test_server_error_in_a_bulk_delete_causes_no_single_deletes(s3_url: str, start_proxy: StartProxy) -> None:
    Root.open(s3_url).write("folder/a", b"data")
    proxy = start_proxy(rule=lambda request: Refusal(500, "InternalError") if is_bulk_delete(request) else None)
    with pytest.raises(StoreError, match="cannot remove"):
        Root.open(s3_url, Access(attempts=2)).remove_folder("folder")
    assert "DELETE" not in {request.method for request in proxy.received}


@pytest.mark.parametrize(
    "refusal", [Refusal(501, "NotImplemented"), Refusal(400, "InvalidArgument"), Refusal(400, "InvalidRequest")]
)
def test_store_that_rejects_conditional_writes_is_detected(
    s3_url: str, start_proxy: StartProxy, refusal: Refusal
) -> None:
    start_proxy(rule=lambda request: refusal if "if-none-match" in request.headers else None)
    assert not Root.open(s3_url).supports_create()


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (Refusal(403, "SignatureDoesNotMatch"), r"another signature .*check the keys .*the region .*a proxy"),
        (Refusal(400, "AuthorizationHeaderMalformed", region="eu-west-9"), "set AWS_DEFAULT_REGION=eu-west-9"),
        (Refusal(400, "AuthorizationHeaderMalformed"), "cannot use the request's authorization: check AWS_DEFAULT_REG"),
    ],
)
def test_refusal_names_its_likely_causes(s3_url: str, start_proxy: StartProxy, refusal: Refusal, message: str) -> None:
    start_proxy(rule=lambda request: refusal)
    with pytest.raises(StoreError, match=message):
        Root.open(s3_url).write("file", b"data")


@pytest.mark.parametrize(("hours", "direction"), [(-2, "ahead"), (30, "behind")])
@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "RequestTimeTooSkewed"])
def test_clock_skew_is_detected_by_the_responses_date(
    s3_url: str, start_proxy: StartProxy, hours: int, direction: str, code: str
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    start_proxy(rule=lambda request: Refusal(403, code, date=date))
    expected = (
        rf"the clocks of this machine and the store differ: set this machine's clock \(it is \d+ minutes {direction}\)"
    )
    with pytest.raises(StoreError, match=expected):
        Root.open(s3_url).write("file", b"data")
    with pytest.raises(StoreError, match=expected):  # a HEAD, whose response has no code
        Root.open(s3_url).exists("file")


def put_shards(url: str, listed: str) -> None:
    """A folder with a clip, and a list of this clip and ``listed``, both publicly readable."""
    clip = counting_video(frames=8)
    source = Root.open(url)
    source.write("folder/clip.mp4", clip)
    rows = [{"uri": "folder/clip.mp4"}, {"uri": listed}]
    source.write("list.jsonl", "\n".join(map(json.dumps, rows)).encode())
    client, (bucket, prefix) = boto3.client("s3"), source.path.split("/")
    client.put_bucket_acl(Bucket=bucket, ACL="public-read")
    for key in ("folder/clip.mp4", "list.jsonl"):
        client.put_object_acl(Bucket=bucket, Key=f"{prefix}/{key}", ACL="public-read")


def probe_errors(source: Root) -> list[str]:
    """Errors of the source's clips, probed in a worker process."""
    with Sandbox(workers=1) as sandbox:
        probed = [
            clip
            for key in ("folder", "list")
            for clip in probe_clips(sandbox, source, find_shard(source, key), Windowing())
        ]
    assert len(probed) == 3
    return [row.error for clip in probed for row in clip.rows if row.error]


def test_public_source_is_read_anonymously_and_the_root_written_with_credentials(
    s3_url: str, source_url: str, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(source_url, f"{source_url}/folder/clip.mp4")
    proxy = start_proxy(rule=public(bucket_of(source_url)))
    with pytest.raises(Exception, match="unknown access key"):
        list_shards(build_storage(Settings(root=s3_url, source=source_url)).source())
    storage = build_storage(Settings(root=s3_url, source=source_url, s3_anonymous=True))
    assert probe_errors(storage.source()) == []
    storage.root().write("table", b"rows")
    first, *later = [request for request in proxy.received if "authorization" in request.headers]
    assert is_of(bucket_of(source_url), first)  # the rejected listing
    assert later
    assert all(is_of(bucket_of(s3_url), request) for request in later)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()
    assert [shard.key for shard in list_shards(storage.source()).shards] == ["folder", "list"]


def test_lists_of_a_local_source_may_name_clips_in_a_public_bucket(
    s3_url: str, source_url: str, start_proxy: StartProxy, tmp_path: Path
) -> None:
    put_shards(source_url, f"{source_url}/folder/clip.mp4")
    (tmp_path / "list.jsonl").write_text(json.dumps({"uri": f"{source_url}/folder/clip.mp4"}))
    start_proxy(rule=public(bucket_of(source_url)))
    source = build_storage(Settings(root=s3_url, source=str(tmp_path), s3_anonymous=True)).source()
    [clip] = list_clips(source, find_shard(source, "list"))
    assert clip.refusal is None


def test_source_and_root_have_separate_credentials(
    s3_url: str, source_url: str, start_proxy: StartProxy, two_profiles: None
) -> None:
    put_shards(source_url, f"{source_url}/folder/clip.mp4")
    key_of_bucket = {bucket_of(source_url): "reader", bucket_of(s3_url): "writer"}
    start_proxy(rule=keys_per_bucket(**{bucket.replace("-", "_"): key for bucket, key in key_of_bucket.items()}))
    settings = Settings(root=s3_url, source=source_url, source_profile="reader", root_profile="writer")
    storage = build_storage(settings)
    assert probe_errors(storage.source()) == []
    storage.root().write("table", b"rows")
    with pytest.raises(Exception, match="access denied"):
        list_shards(build_storage(settings.model_copy(update={"source_profile": "writer"})).source())
    for text in (repr(storage), repr(storage.root()), repr(storage.source().access), storage.model_dump_json()):
        assert "planted" not in text


def test_source_below_the_root_is_read_with_the_roots_credentials(
    s3_url: str, start_proxy: StartProxy, two_profiles: None
) -> None:
    Root.open(s3_url).write("shards/a.jsonl", b"{}")
    start_proxy(rule=keys_per_bucket(**{bucket_of(s3_url).replace("-", "_"): "writer"}))
    source = build_storage(Settings(root=s3_url, root_profile="writer")).source()
    assert [shard.key for shard in list_shards(source).shards] == ["a"]


def test_model_in_object_storage_is_read_with_the_roots_credentials(
    s3_url: str, start_proxy: StartProxy, two_profiles: None, tmp_path: Path
) -> None:
    models = Root.open(s3_url)
    for name, data in small_model().items():
        models.write(f"models/small/{name}", data)
    start_proxy(rule=keys_per_bucket(**{bucket_of(s3_url).replace("-", "_"): "writer"}))
    variant = find_variant(f"{s3_url}/models/small", "v1")
    root = build_storage(Settings(root=s3_url, root_profile="writer")).root()
    assert publish(root, variant, tmp_path / "cache").size > 0


def test_unknown_profile_is_an_error_with_its_settings(s3_url: str) -> None:
    with pytest.raises(
        StoreError, match=r"no such profile: correct AWS_PROFILE, CAPTION_ROOT_PROFILE or CAPTION_SOURCE"
    ):
        build_storage(Settings(root=s3_url, root_profile="nobody")).root()


def test_unparsable_aws_configuration_is_an_error(s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, tmp_path, "[profile\nplanted")
    with pytest.raises(StoreError, match="cannot parse the AWS configuration: correct AWS_CONFIG_FILE") as failed:
        Root.open(s3_url)
    assert "planted" not in str(failed.value)


def test_profile_endpoint_with_credentials_is_an_error_without_them(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(monkeypatch, tmp_path, "[profile odd]\nendpoint_url = http://me:planted@127.0.0.1\n")
    with pytest.raises(StoreError, match="endpoint_url of the AWS profile 'odd' contains credentials") as refused:
        Root.open(s3_url, Access(profile="odd"))
    assert "planted" not in str(refused.value)


def test_requester_pays_source_is_read_with_the_header(s3_url: str, source_url: str, start_proxy: StartProxy) -> None:
    put_shards(source_url, f"{source_url}/folder/clip.mp4")
    start_proxy(rule=requester_pays(bucket_of(source_url)))
    with pytest.raises(Exception, match="access denied"):
        list_shards(build_storage(Settings(root=s3_url, source=source_url)).source())
    storage = build_storage(Settings(root=s3_url, source=source_url, s3_requester_pays=True))
    assert probe_errors(storage.source()) == []
