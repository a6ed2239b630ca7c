"""What went wrong in a store, told so that a person can mend it and no secret is given away."""

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
_DENIED = "these credentials may not do that there: allow it in the policy of the user or of the bucket, or use others"
_EXPIRED = "the session token is no longer valid: get new credentials"
_ELSEWHERE = "the bucket lies in another region, or on another endpoint: check AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"
_SKEWED = "this machine's clock and the store's differ: set this one's"
_BUSY = "the store was too busy, however often it was asked: try again later, or run less at a time"
_OF_CODES = {
    "403": "the store refuses these credentials, or they may not do that there: check them and their policy",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "401": "the store refuses these credentials: check them",
    "Unauthorized": "the store refuses these credentials: check them",
    "InvalidAccessKeyId": "the store does not know the access key: check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the store computes another signature for the request: check the keys (AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY, or the profile), the region (AWS_DEFAULT_REGION), and whether a proxy on the way "
    "changes paths, hosts or headers",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidToken": "the session token is malformed, or another store's: correct AWS_SESSION_TOKEN, or unset it",
    "RequestTimeTooSkewed": _SKEWED,
    "RequestExpired": _SKEWED,
    NO_BUCKET: "there is no such bucket: create it, or correct the URL",
    "301": _ELSEWHERE,
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": "the store cannot use the request's authorization: check AWS_DEFAULT_REGION and "
    "AWS_ACCESS_KEY_ID, or the profile",
    "500": _BUSY,
    "503": _BUSY,
    "InternalError": _BUSY,
    "ServiceUnavailable": _BUSY,
    "SlowDown": _BUSY,
}
"""By the code of the store's answer; an answer to a HEAD has no more than its status. Its message is not repeated."""
_CLOCK_TOLERANCE = timedelta(minutes=15)
"""Maximum age of a request's signature, by S3's specification."""
_OF_SIGNATURES = frozenset({"403", "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"})
"""Codes of answers to a signature that is wrong, or of the wrong time; that to a HEAD is no more than its status."""
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_OF_ERRORS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (NoCredentialsError,),
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a "
        "role gives them; for a public source, set CAPTION_S3_ANONYMOUS=true",
    ),
    ((PartialCredentialsError,), "half of the credentials is missing: set both the access key and the secret key"),
    (
        (ProfileNotFound,),
        "there is no such profile: correct AWS_PROFILE, CAPTION_ROOT_PROFILE or CAPTION_SOURCE_PROFILE, or write that "
        "profile",
    ),
    ((ConfigParseError,), "the AWS configuration cannot be parsed: correct AWS_CONFIG_FILE, or ~/.aws/config"),
    ((CredentialRetrievalError,), "the role or profile gave no credentials: check it, or set AWS_ACCESS_KEY_ID"),
    ((ParamValidationError,), "no bucket or object can have that name: correct the URL"),
    ((SSLError,), "the store's certificate cannot be verified: name its authority's file in AWS_CA_BUNDLE"),
    (
        (ConnectionError, HTTPClientError, TimeoutError),
        "no whole answer came, however often it was asked: check AWS_ENDPOINT_URL, the network and the store",
    ),
)
_SECRET = re.compile(
    r"^[^/?]*//[^/?]*@|[?&;](x-(amz|goog)-(credential|signature|security-token)|awsaccesskeyid|signature|sig|key|secret"
    r"|api_?key|token|access_token|password)=[^&;]",
    re.IGNORECASE,
)


class StoreError(CaptionAssetsError):
    """A place that cannot be read or written, with the reason and the remedy in the message."""


def holds_secret(url: str) -> bool:
    """Whether a URL carries credentials, before the host or among the parameters, and so is not to be repeated."""
    return _SECRET.search(url) is not None


def error_code(error: BaseException) -> str | None:
    """The code of the store's answer behind an error, such as ``AccessDenied``."""
    answer = _answer(error)
    return str(answer.get("Error", {}).get("Code", "unknown")) if answer else None


def is_refusal(error: BaseException) -> bool:
    """Whether the store refused the request itself (HTTP 4xx, 501), so that another form of it may be accepted."""
    answer = _answer(error)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if answer else 0
    return 400 <= status < 500 or status == 501


def _answer(error: BaseException) -> Mapping[str, Any] | None:
    """A store's answer as botocore has it; s3fs makes other errors of botocore's own."""
    for one in (error, error.__cause__):
        if isinstance(one, ClientError):
            return one.response  # type: ignore[no-any-return]
    return None


def explain(error: Exception) -> str:
    """What is wrong and what to do about it, for the end of a sentence about what could not be done.

    Nothing that a store or its client says is repeated: it may hold keys, or the address with all its parameters.
    """
    if isinstance(error, StoreError):
        return str(error)
    if answer := _answer(error):
        code = str(error_code(error))
        return _skew(answer) or _region(answer) or _OF_CODES.get(code, f"the store answered {code}")
    for kinds, meaning in _OF_ERRORS:
        if isinstance(error, kinds):
            return meaning + _endpoint(error)
    if isinstance(error, OSError):  # of this machine's own disk
        return str(error)
    return f"the store's client failed with {type(error).__name__}: try again later"


def _skew(answer: Mapping[str, Any]) -> str | None:
    """What a refused signature means where the answer's date shows that the clocks differ."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if answer.get("Error", {}).get("Code") not in _OF_SIGNATURES or "age" in headers:  # an age is that of a cache
        return None
    try:
        ahead = datetime.now(UTC) - parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError):
        return None
    if abs(ahead) <= _CLOCK_TOLERANCE:
        return None
    minutes = abs(ahead) // timedelta(minutes=1)
    return f"{_SKEWED} (it is {minutes} minutes {'ahead' if ahead > timedelta(0) else 'behind'})"


def _region(answer: Mapping[str, Any]) -> str | None:
    """What a refusal means where the answer names the bucket's region, as Amazon does for one that was wrong."""
    named = answer.get("Error", {}).get("Region")
    if named is None and answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 301:
        named = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if not named or not _REGION.fullmatch(named):
        return None
    return f"the bucket lies in another region: set AWS_DEFAULT_REGION={named}"


def _endpoint(error: Exception) -> str:
    """The server that was asked, in brackets, where the error knows it."""
    url = str(error.kwargs.get("endpoint_url", "")) if isinstance(error, BotoCoreError) else ""
    if not url or holds_secret(url):
        return ""
    parts = urlsplit(url)
    return f" (asked: {parts.scheme}://{parts.netloc})"


@contextmanager
def translate_store_errors(what: str) -> Iterator[None]:
    """Turn whatever a store raises into a ``StoreError`` that begins with ``what``.

    Raises:
        FileNotFoundError: as it came, if there is no such object; a missing bucket is a ``StoreError``.
        StoreError: for all else.
    """
    try:
        yield
    except CaptionAssetsError:
        raise
    except Exception as error:  # stores have many: OSError, botocore's, their clients'
        if isinstance(error, FileNotFoundError) and error_code(error) != NO_BUCKET:
            raise
        raise StoreError(f"{what}: {explain(error)}") from error
