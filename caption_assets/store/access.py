"""Access to storage: the one module that opens file systems."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem

from caption_assets.store.failure import StoreError, explain, url_has_credentials

CONNECT_SECONDS = 5.0
"""Connect timeout; s3fs's default."""
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
"""Variables with the endpoint of a store other than Amazon's."""
CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
"""botocore's settings of the checksums that it sends and validates since 1.36."""
WHEN_REQUIRED = "when_required"
"""The project's default for them. With botocore's, ``when_supported``, several stores refuse requests: Backblaze B2 and
OVH with InvalidArgument (boto3 #4401), Alibaba Cloud with XAmzContentSHA256Mismatch (bosh-s3cli #65), GCS with
SignatureDoesNotMatch (aws-sdk-go-v2 #1816), Qumulo with AuthorizationHeaderMalformed (botocore #3352)."""
_CONFIGURATION = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "HOME")
"""Variables that select the configuration that botocore reads."""


@dataclass(frozen=True, slots=True)
class Access:
    """Access options of object storage, in addition to the standard AWS variables and files.

    They contain no credentials, only the name of a profile. Spans pass them on to worker processes.
    """

    profile: str | None = None
    """AWS profile with credentials, region and endpoint. None for the standard AWS variables."""
    anonymous: bool = False
    """Whether requests are unsigned, as for public buckets. A profile still provides region and endpoint."""
    requester_pays: bool = False
    """Whether requests accept to be charged, as requester-pays buckets require."""
    path_style: bool | None = None
    """Whether the bucket's name is part of the path of each URL (``https://host/bucket/object``) or of its host; None
    for botocore's default: the path if there is an endpoint, else the host."""
    attempts: int = 6
    """Maximum number of attempts of a request. Random delays of up to 1, 2, 4, 8 and 16 s lie between them."""
    read_timeout_seconds: float = 15.0
    """Read timeout: maximum time without data from the store; s3fs's default."""

    def filesystem(self, protocol: str) -> AbstractFileSystem:
        """The file system of a protocol. Equal options give the same object.

        Raises:
            StoreError: if the profile does not exist, or the endpoint there or in the environment is invalid.
            ValueError: if the protocol is unknown.
            ImportError: if the protocol's library is not installed.
        """
        options = self._s3_options() if protocol in ("s3", "s3a") else {}
        return fsspec.filesystem(protocol, **options)

    def _s3_options(self) -> dict[str, Any]:
        from caption_assets.store.s3 import Session  # importing its libraries takes a second, needless for local roots

        for name in ENDPOINTS:
            _check_endpoint(name, os.environ.get(name, ""))
        profile = _profile(self.profile, tuple(map(os.environ.get, _CONFIGURATION)))
        _check_endpoint(f"endpoint_url of the AWS profile {self.profile!r}", profile.get("endpoint_url", ""))
        config: dict[str, Any] = {
            "retries": {"mode": "standard", "total_max_attempts": self.attempts},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": self.read_timeout_seconds,
            "http_session_cls": Session,
        }
        for name in CHECKSUMS:
            if not os.environ.get(f"AWS_{name.upper()}") and name not in profile:
                config[name] = WHEN_REQUIRED
        if self.path_style is not None:
            config["s3"] = {"addressing_style": "path" if self.path_style else "virtual"}
        return {
            "anon": self.anonymous,
            "config_kwargs": config,
            "profile": self.profile,
            "requester_pays": self.requester_pays,
            # A cached listing would go stale: other processes write to the same folders.
            "use_listings_cache": False,
        }


STANDARD = Access()
"""The standard AWS variables and files alone."""


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """The settings of the root, for all outputs, and of the source of the shards."""

    root_url: str
    source_url: str
    root_access: Access = STANDARD
    source_access: Access = STANDARD


def _check_endpoint(name: str, url: str) -> None:
    """Reject an invalid endpoint. The message omits the URL, which may contain credentials; botocore's would not."""
    if url_has_credentials(url):
        raise StoreError(
            f"{name} contains credentials: give the URL alone, and credentials as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if url and urlsplit(url).scheme not in ("http", "https"):
        raise StoreError(f"{name} is not the URL of a store: write http:// or https://, and host and port")


@lru_cache(maxsize=64)  # botocore parses its files on each call, and each read of a clip calls this
def _profile(name: str | None, environment: tuple[str | None, ...]) -> Mapping[str, str]:
    """Endpoint and checksum settings of a profile in botocore's files.

    Args:
        name: the profile; None for the one that the environment selects.
        environment: values of the variables in ``_CONFIGURATION``: the key of the cache.

    Raises:
        StoreError: if the profile does not exist, or a file cannot be parsed.
    """
    from botocore.session import Session

    try:
        configured = Session(profile=name).get_scoped_config()
    except BotoCoreError as error:
        raise StoreError(explain(error)) from error
    return {key: configured[key] for key in ("endpoint_url", *CHECKSUMS) if key in configured}  # without credentials
