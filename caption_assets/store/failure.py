"""What went wrong in a store, told so that a person can mend it and no secret is given away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
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
_ELSEWHERE = "the bucket lies in another region: name that in AWS_DEFAULT_REGION"
_BUSY = "the store was too busy, however often it was asked: try again later, or run less at a time"
_OF_CODES = {
    "403": "the store refuses these credentials, or they may not do that there: check them and their policy",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "InvalidAccessKeyId": "the store does not know the access key: check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key is not that of the access key: check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "RequestTimeTooSkewed": "this machine's clock and the store's differ: set this one's",
    NO_BUCKET: "there is no such bucket: create it, or correct the URL",
    "301": _ELSEWHERE,
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "500": _BUSY,
    "503": _BUSY,
    "InternalError": _BUSY,
    "ServiceUnavailable": _BUSY,
    "SlowDown": _BUSY,
}
"""By the code of the store's answer; an answer to a HEAD has no more than its status. Its message is not repeated."""
_OF_ERRORS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (NoCredentialsError,),
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a "
        "role gives them",
    ),
    ((PartialCredentialsError,), "half of the credentials is missing: set both the access key and the secret key"),
    ((ProfileNotFound,), "there is no such profile: correct AWS_PROFILE, or write that profile"),
    ((CredentialRetrievalError,), "the role or profile gave no credentials: check it, or set AWS_ACCESS_KEY_ID"),
    ((ParamValidationError,), "no bucket or object can have that name: correct the URL"),
    ((SSLError,), "the store's certificate cannot be verified: name its authority's file in AWS_CA_BUNDLE"),
    (
        (ConnectionError, HTTPClientError, TimeoutError),
        "no whole answer came, however often it was asked: check AWS_ENDPOINT_URL, the network and the store",
    ),
)
_SECRET = re.compile(
    r"^[^/?]*//[^/?]*@|[?&;](x-amz-credential|x-amz-signature|x-amz-security-token|awsaccesskeyid|signature|key|secret"
    r"|token|password)=",
    re.IGNORECASE,
)


class StoreError(CaptionAssetsError):
    """A place that cannot be read or written, with the reason and the remedy in the message."""


def holds_secret(url: str) -> bool:
    """Whether a URL carries credentials, before the host or among the parameters, and so is not to be repeated."""
    return _SECRET.search(url) is not None


def error_code(error: BaseException) -> str | None:
    """The code of the store's answer behind an error, such as ``AccessDenied``; s3fs makes others of botocore's own."""
    for one in (error, error.__cause__):
        if isinstance(one, ClientError):
            return str(one.response.get("Error", {}).get("Code", "unknown"))
    return None


def explain(error: Exception) -> str:
    """What is wrong and what to do about it, for the end of a sentence about what could not be done.

    Nothing that a store or its client says is repeated: it may hold keys, or the address with all its parameters.
    """
    if isinstance(error, StoreError):
        return str(error)
    if code := error_code(error):
        return _OF_CODES.get(code, f"the store answered {code}")
    for kinds, meaning in _OF_ERRORS:
        if isinstance(error, kinds):
            return meaning + _endpoint(error)
    if isinstance(error, OSError):  # of this machine's own disk
        return str(error)
    return f"the store's client failed with {type(error).__name__}: try again later"


def _endpoint(error: Exception) -> str:
    """The server that was asked, in brackets, where the error knows it."""
    url = str(error.kwargs.get("endpoint_url", "")) if isinstance(error, BotoCoreError) else ""
    if not url or holds_secret(url):
        return ""
    parts = urlsplit(url)
    return f" (asked: {parts.scheme}://{parts.netloc})"


@contextmanager
def clear_errors(what: str) -> Iterator[None]:
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
