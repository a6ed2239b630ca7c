"""Extensions of botocore and s3fs: bounded retries and timeouts of S3 requests, and deletion in any store.

Two layers retry. botocore retries a request until its response begins, after throttling, 5xx, failed connections and
read timeouts, with random delays that double. s3fs retries a response that breaks off within an object's bytes, up to
five attempts in all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import ConnectionError, HTTPClientError
from fsspec import AbstractFileSystem

from caption_assets.store.failure import is_refusal

MIN_UPLOAD_RATE = 64 << 10
"""Minimum upload rate of a request, in bytes per second: a slower one times out. s3fs sends ten requests at a time, so
that the minimum for a large file is 5 Mbit/s."""

BULK_DELETE = 1000
"""Maximum number of keys in one bulk delete, by S3's specification."""
PARALLEL_DELETES = 16
"""Number of concurrent requests that delete single objects."""


class NoResponse(ConnectionError):  # type: ignore[misc]
    """The store did not begin to respond to a request.

    botocore retries it, as it retries all ConnectionErrors. s3fs would also retry the errors that this one replaces:
    with a store that does not respond, its five attempts times botocore's, and five times that for an object's bytes,
    would take half an hour.
    """

    fmt = "{error}"


class Session(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's HTTP session, with a timeout for uploads.

    aiohttp's read timeout starts when the body has been sent. Sending has no timeout: a request to a store that does
    not accept the body, or does not answer ``Expect: 100-continue``, would block without end.
    """

    async def send(self, request: Any) -> Any:
        """Make one request, up to the beginning of its response.

        Raises:
            NoResponse: if no response begins.
            ConnectionError: if there is no connection.
        """
        try:
            async with asyncio.timeout(self._upload_seconds(request)):
                return await super().send(request)
        except (HTTPClientError, TimeoutError) as error:
            raise NoResponse(endpoint_url=request.url, error=type(error).__name__) from error

    def _upload_seconds(self, request: Any) -> float | None:
        """Timeout of a PUT, in seconds; None for other requests: a store may take minutes to complete an upload."""
        if request.method != "PUT":
            return None
        length = int(request.headers.get("Content-Length", 0))
        return float(self._timeout.sock_read + length / MIN_UPLOAD_RATE)


def delete_objects(fs: AbstractFileSystem, paths: Sequence[str]) -> None:
    """Delete objects of one bucket in bulk, and those that the store does not delete in bulk one by one.

    Some stores reject a bulk delete without Content-MD5, which botocore no longer sends (MinIO with MissingContentMD5,
    s3fs #931; others with InvalidRequest). Some support no bulk delete (GCS: InvalidArgument; others: NotImplemented or
    MethodNotAllowed). A single delete needs no body. s3fs's own ``rm`` ignores the objects that a bulk delete reports
    as not deleted.

    Args:
        fs: an ``S3FileSystem``.
        paths: the objects, as ``fs`` names them.

    Raises:
        OSError: if neither way deletes an object.
    """
    with ThreadPoolExecutor(PARALLEL_DELETES) as pool:
        for begin in range(0, len(paths), BULK_DELETE):
            left = _delete_in_bulk(fs, paths[begin : begin + BULK_DELETE])
            list(pool.map(partial(_delete, fs), left))


def _delete(fs: AbstractFileSystem, path: str) -> None:
    with suppress(FileNotFoundError):  # GCS raises it for an object that does not exist
        fs.rm_file(path)


def _delete_in_bulk(fs: AbstractFileSystem, paths: Sequence[str]) -> Sequence[str]:
    """Delete objects with one request, and return those that remain."""
    bucket = fs.split_path(paths[0])[0]
    by_key = {fs.split_path(path)[1]: path for path in paths}
    try:
        response = fs.call_s3(
            "delete_objects", Bucket=bucket, Delete={"Objects": [{"Key": key} for key in by_key], "Quiet": True}
        )
    except OSError as error:
        if not is_refusal(error):
            raise
        return paths
    refused = {error.get("Key") for error in response.get("Errors", ())}
    return [by_key[key] for key in refused] if refused <= by_key.keys() else paths
