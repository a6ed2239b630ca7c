"""What S3 requests need beyond botocore and s3fs, so that each is made again a few times and none is awaited for ever.

There are two layers that ask again. botocore repeats a request until an answer begins, on throttling, 5xx, connections
that fail and silence, with random waits that double. What breaks off within an object's bytes is out of its sight; s3fs
asks for these again, up to five times in all.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import ConnectionError, HTTPClientError

SLOWEST_UPLOAD = 64 << 10
"""Bytes a second; a slower request is taken for stalled. Ten at a time, as s3fs sends large files, are 5 Mbit/s."""


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
