"""How storage is reached: the one place where file systems are opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec import AbstractFileSystem

from caption_assets.store.failure import StoreError, holds_secret

CONNECT_SECONDS = 5.0
"""Longest time until a connection stands; s3fs's own choice."""
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
"""Variables by which botocore learns of another store than Amazon's."""


@dataclass(frozen=True, slots=True)
class Access:
    """How object storage is reached, beside what the standard AWS variables and files say.

    Worker processes get it with what they are to read.
    """

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
            StoreError: if the address of the store in the environment cannot be used.
            ValueError: if there is no such protocol.
            ImportError: if there is one, and its library is not installed.
        """
        options = self._s3_options() if protocol in ("s3", "s3a") else {}
        return fsspec.filesystem(protocol, **options)

    def _s3_options(self) -> dict[str, Any]:
        from caption_assets.store.s3 import Session  # its libraries take a second, which local folders can do without

        for name in ENDPOINTS:
            _check_endpoint(name, os.environ.get(name, ""))
        config: dict[str, Any] = {
            "retries": {"mode": "standard", "total_max_attempts": self.attempts},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": self.silence_seconds,
            "http_session_cls": Session,
        }
        if self.path_style is not None:
            config["s3"] = {"addressing_style": "path" if self.path_style else "virtual"}
        # Not even a run's own writes would end what s3fs remembers of a folder that other processes write to.
        return {"config_kwargs": config, "use_listings_cache": False}


STANDARD = Access()
"""As it is where nothing is said of it."""


def _check_endpoint(name: str, url: str) -> None:
    """Refuse an address of which botocore's errors would repeat credentials; nothing of it is repeated here."""
    if holds_secret(url):
        raise StoreError(f"{name} holds credentials: give the address alone, and credentials as AWS_ACCESS_KEY_ID etc.")
    if url and urlsplit(url).scheme not in ("http", "https"):
        raise StoreError(f"{name} is no address of a store: write http:// or https://, and host and port")
