"""The Hugging Face Hub as the source of a checkpoint, at one commit."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not re-exported by name
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    parse_ratelimit_headers,
)
from huggingface_hub.utils.tqdm import silent_tqdm

from caption_assets.models.checkpoint_files import MODEL, CheckpointKind
from caption_assets.models.weights import ListedFile, WeightsError

T = TypeVar("T")
LIBRARY = "caption-assets"
DELAYS_SECONDS = (1.0, 4.0, 16.0)
"""Minimum delays before the three retries after HTTP 408, 429 and 5xx, and without a connection."""
MAX_DELAY_SECONDS = 600.0
"""Maximum delay that the Hub may request. Its rate limits have windows of 300 s."""
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\")]*")
logger = logging.getLogger(__name__)
_LOGGERS = ("httpx2", "httpcore2.http11", "huggingface_hub.utils._http")


class _WithoutQueries(logging.Filter):
    """A filter that removes queries from URLs: the clients log the signed URLs to which the Hub redirects."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_queries(record.getMessage()), ()
        return True


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_WithoutQueries())


@dataclass(frozen=True, slots=True)
class Hub:
    """A checkpoint on the Hub that ``HF_ENDPOINT`` names, read with ``HF_TOKEN`` if there is one."""

    hub_id: str
    revision: str
    """The commit, in full."""
    remedy: str = "check the connection to the Hub (proxy, HF_ENDPOINT), and retry"
    pinned: bool = True
    kind: CheckpointKind = MODEL

    @property
    def address(self) -> str:
        """URL of the commit's page."""
        return f"{_page(self.hub_id)}/tree/{self.revision}"

    def files(self) -> list[ListedFile]:
        """The checkpoint's files, with the Hub's hashes.

        Raises:
            WeightsError: if the Hub cannot be read, the revision is not a full commit, or the repository does not hold
                a checkpoint of the expected kind.
        """
        with self._as_weights_error(self.hub_id):
            api = HfApi(endpoint=constants.ENDPOINT, library_name=LIBRARY)
            found = _retry(
                lambda: api.model_info(
                    self.hub_id, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                )
            )
        if found.sha != self.revision:
            raise WeightsError(
                f"{self.revision!r} is a name for a commit of {self.hub_id}, which may change: set "
                f"{self.kind.revision} to {found.sha}, its present commit"
            )
        siblings = {file.rfilename: file for file in found.siblings or ()}
        self.kind.check(list(siblings), self.address)
        return [_listed(siblings[path]) for path in self.kind.select(siblings)]

    def copy(self, file: ListedFile, target: io.BufferedWriter) -> None:
        """Write a file's bytes to ``target``, starting at its current position.

        Raises:
            WeightsError: if the download fails.
        """
        with self._as_weights_error(f"{self.hub_id}/{file.path}"):
            # An empty write raises if another file has failed: this download then stops as well.
            _retry(lambda: self._resume(file, target), check=lambda: target.write(b""))

    def _resume(self, file: ListedFile, target: io.BufferedWriter) -> None:
        # hf_hub_download cannot resume in another process: the names of its partial files are unique.
        try:
            http_get(
                hf_hub_url(self.hub_id, file.path, revision=self.revision, endpoint=constants.ENDPOINT),
                target,
                resume_size=target.tell(),
                headers=build_hf_headers(library_name=LIBRARY),
                expected_size=file.size,
                tqdm_class=silent_tqdm,
            )
        except (HfHubHTTPError, OfflineModeIsEnabled):
            raise
        except OSError:
            pass  # the response was longer or shorter than the file; the verification reports it

    @contextmanager
    def _as_weights_error(self, wanted: str) -> Iterator[None]:
        """Translate errors without their messages and causes, which contain signed URLs."""
        try:
            yield
        except OfflineModeIsEnabled:
            problem = (
                f"the mirror of {self.hub_id} is incomplete, and HF_HUB_OFFLINE forbids the download: unset it, or "
                "materialize model_weights on a machine that can reach the Hub"
            )
        except RevisionNotFoundError:
            problem = (
                f"{self.hub_id} has no revision {self.revision!r}: set {self.kind.revision} to one of the commits "
                f"at {_page(self.hub_id)}/commits/main"
            )
        except HfHubHTTPError as error:
            problem = self._explain(error, wanted)
        except httpx2.HTTPError as error:
            problem = (
                f"cannot download {wanted} from {_endpoint()} "
                f"({type(error).__name__}: {without_queries(str(error))}): check the network, or set HF_ENDPOINT to a "
                "reachable mirror of the Hub, and retry: the download resumes"
            )
        else:
            return
        raise WeightsError(problem) from None

    def _explain(self, error: HfHubHTTPError, wanted: str) -> str:
        status = error.response.status_code
        if isinstance(error, GatedRepoError) or status in (401, 403):
            return (
                f"the Hub denies access to {wanted} (HTTP {status}): set HF_TOKEN to a token of an account with "
                f"access, and accept the model's terms, if it has any, at {_page(self.hub_id)}"
            )
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            return (
                f"{_endpoint()} has no {wanted} at {self.revision} (HTTP {status}): check the name, or "
                "set HF_TOKEN if it is private"
            )
        return (
            f"cannot download {wanted} from {_endpoint()} (HTTP {status}): retry "
            f"later{_or_with_token(status)}; the download resumes"
        )


def _listed(file: RepoSibling) -> ListedFile:
    """A file with its hash: SHA-256 for large files (LFS), Git's hash for small ones."""
    if file.size is None or not (file.lfs or file.blob_id):
        raise WeightsError(
            f"cannot verify {file.rfilename}: {_endpoint()} gives no size or hash of it; set "
            "HF_ENDPOINT to a hub that does"
        )
    if file.lfs:
        return ListedFile(file.rfilename, file.size, sha256=file.lfs.sha256)
    return ListedFile(file.rfilename, file.size, git_blob=file.blob_id)


def _endpoint() -> str:
    """The Hub's URL, for messages: without user, password and query."""
    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def without_queries(text: str) -> str:
    """A text without the queries of its URLs."""
    return _QUERY.sub(r"\1?…", text)


def _page(hub_id: str) -> str:
    return f"{_endpoint()}/{hub_id}"


_is_in_retry: ContextVar[bool] = ContextVar("_is_in_retry", default=False)
"""True while ``_retry`` makes the current request."""


def _retry(call: Callable[[], T], check: Callable[[], object] = lambda: None) -> T:
    """The result of ``call``, which is retried after server errors, with the delay that the Hub requests.

    Args:
        call: makes the request.
        check: called every second of a delay; an exception ends the delay.

    Raises:
        WeightsError: if the Hub requests a delay of more than ``MAX_DELAY_SECONDS``.
        HfHubHTTPError: if the Hub refuses the request, or the last retry fails.
        httpx2.TransportError: if the last retry gets no response.
    """
    for delay in DELAYS_SECONDS:
        try:
            return _raising_rate_limits(call)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in (408, 429) and status < 500:
                raise
            delay = max(delay, _requested_delay(error.response))
            logger.warning("%s answers HTTP %d, retry in %.0f s", _endpoint(), status, delay)
        except httpx2.TransportError as error:
            logger.warning("%s: %s, retry in %.0f s", _endpoint(), type(error).__name__, delay)
        _wait(delay, check)
    return _raising_rate_limits(call)


def _raising_rate_limits(call: Callable[[], T]) -> T:
    """Make a request that raises on HTTP 429.

    huggingface_hub's download would retry by itself, without a maximum delay and without parsing a ``Retry-After``
    date.
    """
    client = get_session()
    hooks = client.event_hooks
    if _raise_rate_limit not in hooks["response"]:
        client.event_hooks = {**hooks, "response": [*hooks["response"], _raise_rate_limit]}
    token = _is_in_retry.set(True)
    try:
        return call()
    finally:
        _is_in_retry.reset(token)


def _raise_rate_limit(response: httpx2.Response) -> None:
    if response.status_code == 429 and _is_in_retry.get():
        response.read()
        hf_raise_for_status(response)


def _requested_delay(response: httpx2.Response) -> float:
    """Delay that a response requests, in seconds; 0 if it requests none.

    Raises:
        WeightsError: if it is too long.
    """
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        seconds = float(limit.reset_in_seconds)
    else:
        seconds = _retry_after(response.headers)
    if seconds > MAX_DELAY_SECONDS:
        raise WeightsError(
            f"{_endpoint()} answers HTTP {response.status_code} and requests a delay of {seconds:.0f} "
            f"s, more than {MAX_DELAY_SECONDS:.0f} s: retry after it{_or_with_token(response.status_code)}; the "
            "download resumes"
        )
    return seconds and seconds + 1  # both headers have whole seconds


def _or_with_token(status: int) -> str:
    return ", or set HF_TOKEN, as accounts have a higher rate limit" if status == 429 else ""


def _retry_after(headers: Mapping[str, str]) -> float:
    """The header ``Retry-After`` (a number of seconds or a date, RFC 9110), in seconds; 0 if missing or invalid."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = _parse_date(value)
    except ValueError:
        return 0.0
    try:
        now = _parse_date(headers.get("Date", ""))  # the server's clock, as in Retry-After
    except ValueError:
        now = datetime.now(UTC)
    return max((date - now).total_seconds(), 0.0)


def _parse_date(text: str) -> datetime:
    date = parsedate_to_datetime(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _wait(seconds: float, check: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 1.0))
