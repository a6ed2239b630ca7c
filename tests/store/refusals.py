"""Rules for the proxy that imitate the refusals of S3-compatible stores."""

from __future__ import annotations

from collections.abc import Callable

from tests.store.fault_proxy import Refusal, Request, Rule

CHECKSUM_REFUSALS = {
    "Backblaze B2, OVH": Refusal(400, "InvalidArgument"),  # boto/s3transfer #327, boto/boto3 #4401
    "Alibaba Cloud": Refusal(400, "XAmzContentSHA256Mismatch"),  # cloudfoundry/bosh-s3cli #65
    "Google Cloud": Refusal(403, "SignatureDoesNotMatch"),  # aws/aws-sdk-go-v2 #1816
    "Qumulo": Refusal(400, "AuthorizationHeaderMalformed"),  # boto/botocore #3352
    "django-storages' user": Refusal(411, "MissingContentLength"),  # boto/boto3 #4398
    "Cloudflare R2": Refusal(501, "NotImplemented"),  # "A header implies functionality that is not implemented"
}
"""Responses to a request with one of the checksums that boto sends since 1.36."""
BULK_DELETE_REFUSALS = {
    "MinIO": Refusal(400, "MissingContentMD5"),  # fsspec/s3fs #931, aws/aws-sdk-java-v2 #5805
    "PowerScale, corporate stores": Refusal(400, "InvalidRequest"),  # aio-libs/aiobotocore #1290
    "Google Cloud": Refusal(400, "InvalidArgument"),  # livebook-dev/livebook #956: "Cannot create buckets using a POST"
    "Ceph": Refusal(400, "MalformedXML"),  # ceph/ceph #23544
    "gateways": Refusal(501, "NotImplemented"),
    "static gateways": Refusal(405, "MethodNotAllowed"),
    "Google Cloud, signed checksums": Refusal(403, "SignatureDoesNotMatch"),
    "policies without bulk deletes": Refusal(403, "AccessDenied"),
    "Alibaba Cloud": Refusal(400, "XAmzContentSHA256Mismatch"),
}
"""Responses to a bulk delete without Content-MD5."""


def has_checksum(request: Request) -> bool:
    """Whether a request sends or requests one of the new checksums."""
    new = ("x-amz-checksum-", "x-amz-sdk-checksum-algorithm", "x-amz-trailer")
    chunked = "aws-chunked" in request.headers.get("content-encoding", "")
    return chunked or any(name.startswith(new) for name in request.headers)


def is_bulk_delete(request: Request) -> bool:
    """Whether a request deletes several objects."""
    return request.method == "POST" and request.target.partition("?")[2].split("=")[0] == "delete"


def without_checksums(refusal: Refusal) -> Rule:
    """A store without the new checksums."""
    return _refusing(refusal, lambda request: has_checksum(request) and not is_bulk_delete(request))


def without_bulk_delete(refusal: Refusal) -> Rule:
    """A store without bulk delete, or whose bulk delete requires Content-MD5, which is never sent."""
    return _refusing(refusal, lambda request: is_bulk_delete(request) and "content-md5" not in request.headers)


def public(bucket: str) -> Rule:
    """A store with a public bucket and without valid keys."""
    denied = Refusal(403, "InvalidAccessKeyId")
    return _refusing(denied, lambda request: is_of(bucket, request) and "authorization" in request.headers)


def requester_pays(bucket: str) -> Rule:
    """A store with a requester-pays bucket."""
    return _refusing(
        Refusal(403, "AccessDenied"),
        lambda request: is_of(bucket, request) and request.headers.get("x-amz-request-payer") != "requester",
    )


def keys_per_bucket(**key_of_bucket: str) -> Rule:
    """A store in which each bucket belongs to one access key; buckets are given with ``_`` in place of ``-``."""

    def belongs_to_another(request: Request) -> bool:
        bucket = request.target.split("/")[1].partition("?")[0].replace("-", "_")
        return f"Credential={key_of_bucket[bucket]}/" not in request.headers.get("authorization", "")

    return _refusing(Refusal(403, "AccessDenied"), belongs_to_another)


def is_of(bucket: str, request: Request) -> bool:
    """Whether a request is for a bucket or an object in it, by its path."""
    return request.target.partition("?")[0].split("/")[1] == bucket


def _refusing(refusal: Refusal, refused: Callable[[Request], bool]) -> Rule:
    return lambda request: refusal if refused(request) else None
