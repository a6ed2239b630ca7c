"""Errors of storage: clear messages with a remedy, and without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)

from caption_assets.errors import CaptionAssetsError

NO_BUCKET = "NoSuchBucket"
_DENIED = "access denied: allow the request in the policy of the user or of the bucket, or use other credentials"
_EXPIRED = "the session token has expired: get new credentials"
_WRONG_REGION = "the bucket is in another region or on another endpoint: check AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"
_SKEWED = "the clocks of this machine and the store differ: set this machine's clock"
_BUSY = "the store was too busy, also for all retries: retry later, or run fewer steps at a time"
_CODE_MEANINGS = {
    "403": "the store rejects these credentials or denies access: check them and their policy",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "401": "the store rejects these credentials: check them",
    "Unauthorized": "the store rejects these credentials: check them",
    "InvalidAccessKeyId": "unknown access key: check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the store computes another signature for the request: check the keys (AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY, or the profile), the region (AWS_DEFAULT_REGION), and whether a proxy changes paths, "
    "hosts or headers",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidToken": "the session token is malformed or another store's: correct or unset AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": _SKEWED,
    "RequestExpired": _SKEWED,
    NO_BUCKET: "there is no such bucket: create it, or correct the URL",
    "301": _WRONG_REGION,
    "PermanentRedirect": _WRONG_REGION,
    "AuthorizationHeaderMalformed": "the store cannot use the request's authorization: check AWS_DEFAULT_REGION and "
    "AWS_ACCESS_KEY_ID, or the profile",
    "500": _BUSY,
    "503": _BUSY,
    "InternalError": _BUSY,
    "ServiceUnavailable": _BUSY,
    "SlowDown": _BUSY,
}
"""Messages by the error code of the store's response, or by its status: a response to HEAD has no error code. The
store's own message is omitted."""
CLOCK_TOLERANCE = timedelta(minutes=15)
"""Maximum difference between two correctly set clocks: S3 rejects older signatures (RequestTimeTooSkewed)."""
_SIGNATURE_CODES = frozenset({"403", "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"})
"""Error codes, or status, of responses to an invalid or expired signature."""
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_ERROR_MEANINGS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (NoCredentialsError,),
        "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role "
        "provides them; for a public source, set CAPTION_S3_ANONYMOUS=true",
    ),
    ((PartialCredentialsError,), "incomplete credentials: set both the access key and the secret key"),
    (
        (ProfileNotFound,),
        "there is no such profile: correct AWS_PROFILE, CAPTION_ROOT_PROFILE or CAPTION_SOURCE_PROFILE, or create the "
        "profile",
    ),
    ((ConfigParseError,), "cannot parse the AWS configuration: correct AWS_CONFIG_FILE, or ~/.aws/config"),
    ((CredentialRetrievalError,), "the role or profile gave no credentials: check it, or set AWS_ACCESS_KEY_ID"),
    ((ParamValidationError,), "invalid name of a bucket or object: correct the URL"),
    ((SSLError,), "cannot verify the store's certificate: set AWS_CA_BUNDLE to its authority's certificate"),
    (
        (ConnectionError, HTTPClientError, TimeoutError),
        "no complete response, also for all retries: check AWS_ENDPOINT_URL, the network and the store",
    ),
)
_SECRET = re.compile(
    r"^[^/?]*//[^/?]*@|[?&;](x-(amz|goog)-(credential|signature|security-token)|awsaccesskeyid|signature|sig|key|secret"
    r"|api_?key|token|access_token|password)=[^&;]",
    re.IGNORECASE,
)


class StoreError(CaptionAssetsError):
    """Storage that cannot be read or written; the message gives reason and remedy."""


def url_has_credentials(url: str) -> bool:
    """Whether a URL contains credentials, before the host or among the parameters: such a URL must not be shown."""
    return _SECRET.search(url) is not None


def error_code(error: BaseException) -> str | None:
    """Error code of the store's response behind an error, such as ``AccessDenied``; None without a response."""
    response = _response(error)
    return str(response.get("Error", {}).get("Code", "unknown")) if response else None


def is_refusal(error: BaseException) -> bool:
    """Whether the store rejected the request itself (HTTP 4xx, 501), so that another form of it may be accepted."""
    response = _response(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if response else 0
    return 400 <= status < 500 or status == 501


def _response(error: BaseException) -> Mapping[str, Any] | None:
    """Botocore's response behind an error, which s3fs may have translated."""
    for one in (error, error.__cause__):
        if isinstance(one, ClientError):
            return one.response  # type: ignore[no-any-return]
    return None


def explain(error: Exception) -> str:
    """Reason and remedy of an error, for the end of a message.

    Messages of the store and its client are omitted: they may contain keys, or the URL with all its parameters.
    """
    if isinstance(error, StoreError):
        return str(error)
    if response := _response(error):
        code = str(error_code(error))
        return _skew(response) or _region(response) or _CODE_MEANINGS.get(code, f"the store answered {code}")
    for kinds, meaning in _ERROR_MEANINGS:
        if isinstance(error, kinds):
            return meaning + _endpoint(error)
    if isinstance(error, OSError):  # from the local disk
        return str(error)
    return f"the store's client failed with {type(error).__name__}: retry later"


def _skew(response: Mapping[str, Any]) -> str | None:
    """The meaning of a rejected signature, if the response's date shows that the clocks differ."""
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    # A response with an age comes from a cache: its date is not the present.
    if response.get("Error", {}).get("Code") not in _SIGNATURE_CODES or "age" in headers:
        return None
    try:
        ahead = datetime.now(UTC) - parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError):
        return None
    if abs(ahead) <= CLOCK_TOLERANCE:
        return None
    minutes = abs(ahead) // timedelta(minutes=1)
    return f"{_SKEWED} (it is {minutes} minutes {'ahead' if ahead > timedelta(0) else 'behind'})"


def _region(response: Mapping[str, Any]) -> str | None:
    """The meaning of a rejection, if the response names the bucket's region, as Amazon's does for a wrong one."""
    named = response.get("Error", {}).get("Region")
    if named is None and response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 301:
        named = response["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if not named or not _REGION.fullmatch(named):
        return None
    return f"the bucket is in another region: set AWS_DEFAULT_REGION={named}"


def _endpoint(error: Exception) -> str:
    """The server of the failed request, in brackets, if the error has it."""
    url = str(error.kwargs.get("endpoint_url", "")) if isinstance(error, BotoCoreError) else ""
    if not url or url_has_credentials(url):
        return ""
    parts = urlsplit(url)
    return f" (server: {parts.scheme}://{parts.netloc})"


@contextmanager
def translate_store_errors(what: str) -> Iterator[None]:
    """Translate all errors of a store into a ``StoreError`` that begins with ``what``.

    Raises:
        FileNotFoundError: unchanged, if the object does not exist; a missing bucket is a ``StoreError``.
        StoreError: for all other errors.
    """
    try:
        yield
    except CaptionAssetsError:
        raise
    except Exception as error:  # stores raise many types: OSError, botocore's, their clients'
        if isinstance(error, FileNotFoundError) and error_code(error) != NO_BUCKET:
            raise
        raise StoreError(f"{what}: {explain(error)}") from error
