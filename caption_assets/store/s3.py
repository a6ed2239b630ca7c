"""What S3 requests need beyond botocore and s3fs, so that each is made again a few times and none is awaited for ever.

There are two layers that ask again. botocore repeats a request until an answer begins, on throttling, 5xx, connections
that fail and silence, with random waits that double. What breaks off within an object's bytes is out of its sight; s3fs
asks for these again, up to five times in all.
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

SLOWEST_UPLOAD = 64 << 10
"""Bytes a second; a slower request is taken for stalled. Ten at a time, as s3fs sends large files, are 5 Mbit/s."""

BULK_DELETE = 1000
"""Maximum number of keys in one bulk delete, by S3's specification."""
SINGLE_DELETES = 16
"""Requests at a time where objects are deleted one by one."""


class NoAnswer(ConnectionError):  # type: ignore[misc]
    """A request to which no answer began.

    botocore repeats it as it repeats all of its kind. s3fs does not, as it does the errors that this one stands for:
    its five times botocore's, and five times that for an object's bytes, would be half an hour before a silent store.
    """

    fmt = "{error}"


class Session(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's HTTP session, with an end to uploads.

    aiohttp begins to count the store's silence when the body is sent, and waits without end to send it to a store that
    takes none of it, or does not give leave to send it.
    """

    async def send(self, request: Any) -> Any:
        """Make one request, up to the beginning of its answer.

        Raises:
            NoAnswer: if none came.
            ConnectionError: if there is no connection.
        """
        try:
            async with asyncio.timeout(self._upload_seconds(request)):
                return await super().send(request)
        except (HTTPClientError, TimeoutError) as error:
            raise NoAnswer(endpoint_url=request.url, error=type(error).__name__) from error

    def _upload_seconds(self, request: Any) -> float | None:
        """Only puts: completing an upload takes a store minutes at times, in which it says that it is still there."""
        if request.method != "PUT":
            return None
        length = int(request.headers.get("Content-Length", 0))
        return float(self._timeout.sock_read + length / SLOWEST_UPLOAD)


def delete_objects(fs: AbstractFileSystem, paths: Sequence[str]) -> None:
    """Delete objects of one bucket: in bulk, and one by one what the store does not delete in bulk.

    Stores refuse a bulk delete without Content-MD5, which botocore no longer sends (MinIO with MissingContentMD5, s3fs
    #931; others with InvalidRequest), or have none (GCS with InvalidArgument; NotImplemented, MethodNotAllowed). A
    single delete needs no body. s3fs's own ``rm`` ignores the objects that a bulk delete reports as not deleted.

    Args:
        fs: an ``S3FileSystem``.
        paths: the objects, as ``fs`` names them.

    Raises:
        OSError: if an object can be deleted neither way.
    """
    with ThreadPoolExecutor(SINGLE_DELETES) as pool:
        for begin in range(0, len(paths), BULK_DELETE):
            left = _delete_in_bulk(fs, paths[begin : begin + BULK_DELETE])
            list(pool.map(partial(_delete, fs), left))


def _delete(fs: AbstractFileSystem, path: str) -> None:
    with suppress(FileNotFoundError):  # GCS says so where there is nothing to delete
        fs.rm_file(path)


def _delete_in_bulk(fs: AbstractFileSystem, paths: Sequence[str]) -> Sequence[str]:
    """Delete objects with one request, and return those that are left."""
    bucket = fs.split_path(paths[0])[0]
    by_key = {fs.split_path(path)[1]: path for path in paths}
    try:
        answer = fs.call_s3(
            "delete_objects", Bucket=bucket, Delete={"Objects": [{"Key": key} for key in by_key], "Quiet": True}
        )
    except OSError as error:
        if not is_refusal(error):
            raise
        return paths
    refused = {error.get("Key") for error in answer.get("Errors", ())}
    return [by_key[key] for key in refused] if refused <= by_key.keys() else paths
