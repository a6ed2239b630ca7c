"""How storage is reached: the one place where file systems are opened."""

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

from caption_assets.store.failure import StoreError, explain, holds_secret

CONNECT_SECONDS = 5.0
"""Longest time until a connection stands; s3fs's own choice."""
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
"""Variables by which botocore learns of another store than Amazon's."""
CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
"""botocore's settings of the checksums that it sends and validates since 1.36, as its configuration files name them."""
WHEN_REQUIRED = "when_required"
"""Our default for them. With botocore's, ``when_supported``, several stores refuse requests: Backblaze B2 and OVH with
InvalidArgument (boto3 #4401), Alibaba Cloud with XAmzContentSHA256Mismatch (bosh-s3cli #65), GCS with
SignatureDoesNotMatch (aws-sdk-go-v2 #1816), Qumulo with AuthorizationHeaderMalformed (botocore #3352)."""
_CONFIGURATION = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "HOME")
"""Variables that decide which configuration botocore reads."""


@dataclass(frozen=True, slots=True)
class Access:
    """How object storage is reached, beside what the standard AWS variables and files say.

    It holds no credentials, only the name of a profile that does. Worker processes get it with what they are to read.
    """

    profile: str | None = None
    """Name of the AWS profile with credentials, region and endpoint. None for the standard AWS variables."""
    anonymous: bool = False
    """Whether requests are not signed, as for public buckets. A profile still gives region and endpoint."""
    requester_pays: bool = False
    """Whether requests agree to be charged, as requester-pays buckets demand."""
    path_style: bool | None = None
    """Whether the bucket's name goes into the path of each address (``https://host/bucket/object``) or before its host;
    None for botocore's choice, which is the path where an endpoint is named, and else the host."""
    attempts: int = 6
    """Most times that a request is made. Between two of them lie random waits of up to 1, 2, 4, 8 and 16 s."""
    silence_seconds: float = 15.0
    """Longest time that the store may send nothing while an answer is awaited; s3fs's own choice."""

    def filesystem(self, protocol: str) -> AbstractFileSystem:
        """The file system of a protocol, the same object for the same access.

        Raises:
            StoreError: if there is no such profile, or the store's address there or in the environment is unusable.
            ValueError: if there is no such protocol.
            ImportError: if there is one, and its library is not installed.
        """
        options = self._s3_options() if protocol in ("s3", "s3a") else {}
        return fsspec.filesystem(protocol, **options)

    def _s3_options(self) -> dict[str, Any]:
        from caption_assets.store.s3 import Session  # its libraries take a second, which local folders can do without

        for name in ENDPOINTS:
            _check_endpoint(name, os.environ.get(name, ""))
        profile = _profile(self.profile, tuple(map(os.environ.get, _CONFIGURATION)))
        _check_endpoint(f"endpoint_url of the AWS profile {self.profile!r}", profile.get("endpoint_url", ""))
        config: dict[str, Any] = {
            "retries": {"mode": "standard", "total_max_attempts": self.attempts},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": self.silence_seconds,
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
            # Not even a run's own writes would end what s3fs remembers of a folder that other processes write to.
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
    """Refuse an address of which botocore's errors would repeat credentials; nothing of it is repeated here."""
    if holds_secret(url):
        raise StoreError(f"{name} holds credentials: give the address alone, and credentials as AWS_ACCESS_KEY_ID etc.")
    if url and urlsplit(url).scheme not in ("http", "https"):
        raise StoreError(f"{name} is no address of a store: write http:// or https://, and host and port")


@lru_cache(maxsize=64)  # botocore reads its files for it, and file systems are asked for with each range of a clip
def _profile(name: str | None, environment: tuple[str | None, ...]) -> Mapping[str, str]:
    """Endpoint and checksums that botocore's files configure for a profile, or for the one of the environment.

    Raises:
        StoreError: if there is no such profile, or a file cannot be parsed.
    """
    from botocore.session import Session

    try:
        configured = Session(profile=name).get_scoped_config()
    except BotoCoreError as error:
        raise StoreError(explain(error)) from error
    return {key: configured[key] for key in ("endpoint_url", *CHECKSUMS) if key in configured}  # and no credentials
