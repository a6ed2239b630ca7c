"""The Hugging Face Hub as the place of a checkpoint, at one commit."""

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

from caption_assets.models.parts import MODEL, Layout
from caption_assets.models.weights import ListedFile, WeightsError

T = TypeVar("T")
LIBRARY = "caption-assets"
PAUSES_SECONDS = (1.0, 4.0, 16.0)
"""Minimum pauses before the second, third and fourth try where the Hub fails: HTTP 408, 429 and 5xx, no connection."""
LONGEST_PAUSE_SECONDS = 600.0
"""Maximum pause that the Hub may ask for. Its rate limits have windows of 300 s."""
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\")]*")
logger = logging.getLogger(__name__)
_LOGGERS = ("httpx2", "httpcore2.http11", "huggingface_hub.utils._http")


class _WithoutQueries(logging.Filter):
    """The Hub sends its clients on to signed addresses. Who has one can read the file, and the clients log them."""

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
    remedy: str = "look for what lies between this machine and the Hub (a proxy, HF_ENDPOINT), and try again"
    pinned: bool = True
    layout: Layout = MODEL

    @property
    def address(self) -> str:
        """The page of that commit."""
        return f"{_page(self.hub_id)}/tree/{self.revision}"

    def files(self) -> list[ListedFile]:
        """The checkpoint's files, with the hashes that the Hub has of them.

        Raises:
            WeightsError: if the Hub does not tell, the revision is no commit, or the repository holds no such
                checkpoint.
        """
        with self._clear_errors(self.hub_id):
            api = HfApi(endpoint=constants.ENDPOINT, library_name=LIBRARY)
            found = _retry(
                lambda: api.model_info(
                    self.hub_id, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                )
            )
        if found.sha != self.revision:
            raise WeightsError(
                f"{self.revision!r} is no whole commit of {self.hub_id}, but a name for one, which may change: set "
                f"{self.layout.setting}_REVISION={found.sha} for what it is now"
            )
        siblings = {file.rfilename: file for file in found.siblings or ()}
        self.layout.check(list(siblings), self.address)
        return [_listed(siblings[path]) for path in self.layout.select(siblings)]

    def copy(self, file: ListedFile, target: io.BufferedWriter) -> None:
        """Write a file's bytes to ``target``, from the position on at which it stands.

        Raises:
            WeightsError: if the Hub does not send them.
        """
        with self._clear_errors(f"{self.hub_id}/{file.path}"):
            # An empty write raises where another file has failed, so that nobody waits for this one.
            _retry(lambda: self._continue(file, target), check=lambda: target.write(b""))

    def _continue(self, file: ListedFile, target: io.BufferedWriter) -> None:
        # Not hf_hub_download, which begins anew after a process has ended: its unfinished files are unique to it.
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
            pass  # the answer was longer or shorter than the file; whoever examines it tells of it

    @contextmanager
    def _clear_errors(self, wanted: str) -> Iterator[None]:
        """Errors in own words alone, and without their causes: these name addresses that hold signatures."""
        try:
            yield
        except OfflineModeIsEnabled:
            problem = (
                f"{self.hub_id} is not whole in the mirror, and HF_HUB_OFFLINE forbids to fetch it: unset that, or "
                "materialize model_weights where the Hub can be reached"
            )
        except RevisionNotFoundError:
            problem = (
                f"{self.hub_id} has no revision {self.revision!r}: its commits are listed at "
                f"{_page(self.hub_id)}/commits/main; set {self.layout.setting}_REVISION to one of them"
            )
        except HfHubHTTPError as error:
            problem = self._explain(error, wanted)
        except httpx2.HTTPError as error:
            problem = (
                f"{wanted} cannot be fetched from {public(constants.ENDPOINT)} "
                f"({type(error).__name__}: {without_queries(str(error))}): see whether this machine reaches it, or set "
                "HF_ENDPOINT to a mirror of the Hub that it reaches, and try again; what has come is kept"
            )
        else:
            return
        raise WeightsError(problem) from None

    def _explain(self, error: HfHubHTTPError, wanted: str) -> str:
        status = error.response.status_code
        if isinstance(error, GatedRepoError) or status in (401, 403):
            return (
                f"the Hub refuses {wanted} (HTTP {status}): set HF_TOKEN to a token of an account that may read "
                f"it, and accept its terms, if it has any, at {_page(self.hub_id)}"
            )
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            return (
                f"there is no {wanted} at {self.revision} on {public(constants.ENDPOINT)} (HTTP {status}): check "
                "the name, or set HF_TOKEN if it is private"
            )
        return (
            f"{wanted} cannot be fetched from {public(constants.ENDPOINT)}, which answers HTTP {status}: try "
            f"again later{_or_with_token(status)}; what has come is kept"
        )


def _listed(file: RepoSibling) -> ListedFile:
    """Large files (LFS) have a SHA-256 there, small ones the hash that git has of them."""
    if file.size is None or not (file.lfs or file.blob_id):
        raise WeightsError(
            f"{public(constants.ENDPOINT)} tells no size or hash of {file.rfilename}, which could not be verified: "
            "set HF_ENDPOINT to a hub that does"
        )
    if file.lfs:
        return ListedFile(file.rfilename, file.size, sha256=file.lfs.sha256)
    return ListedFile(file.rfilename, file.size, git_blob=file.blob_id)


def public(url: str) -> str:
    """A URL without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def without_queries(text: str) -> str:
    """A text whose URLs have lost their queries."""
    return _QUERY.sub(r"\1?…", text)


def _page(hub_id: str) -> str:
    return f"{public(constants.ENDPOINT)}/{hub_id}"


_retries_here: ContextVar[bool] = ContextVar("_retries_here", default=False)
"""Whether the request under way is one of ``_retry``."""


def _retry(call: Callable[[], T], check: Callable[[], object] = lambda: None) -> T:
    """The result of ``call``, which is repeated where the Hub fails, after the pause that the Hub asks for.

    Args:
        call: makes the request.
        check: called each second of a pause; ends it by raising.

    Raises:
        WeightsError: if the Hub asks for more than ``LONGEST_PAUSE_SECONDS``.
        HfHubHTTPError: if it refuses the request, or the last try fails.
        httpx2.TransportError: if the last try gets no answer.
    """
    for pause in PAUSES_SECONDS:
        try:
            return _raising_rate_limits(call)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in (408, 429) and status < 500:
                raise
            pause = max(pause, _requested_pause(error.response))
            logger.warning("%s answers HTTP %d: retry in %.0f s", public(constants.ENDPOINT), status, pause)
        except httpx2.TransportError as error:
            logger.warning("%s: %s, retry in %.0f s", public(constants.ENDPOINT), type(error).__name__, pause)
        _wait(pause, check)
    return _raising_rate_limits(call)


def _raising_rate_limits(call: Callable[[], T]) -> T:
    """Make a request whose HTTP 429 is raised at once.

    huggingface_hub's download would retry it by itself: without limit to the pause, and without regard to a
    ``Retry-After`` that is a date.
    """
    client = get_session()
    hooks = client.event_hooks
    if _raise_rate_limit not in hooks["response"]:
        client.event_hooks = {**hooks, "response": [*hooks["response"], _raise_rate_limit]}
    token = _retries_here.set(True)
    try:
        return call()
    finally:
        _retries_here.reset(token)


def _raise_rate_limit(response: httpx2.Response) -> None:
    if response.status_code == 429 and _retries_here.get():
        response.read()
        hf_raise_for_status(response)


def _requested_pause(response: httpx2.Response) -> float:
    """Seconds that an answer asks to wait; 0 if it does not.

    Raises:
        WeightsError: if they are too many.
    """
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        seconds = float(limit.reset_in_seconds)
    else:
        seconds = _retry_after(response.headers)
    if seconds > LONGEST_PAUSE_SECONDS:
        raise WeightsError(
            f"{public(constants.ENDPOINT)} answers HTTP {response.status_code} and asks for a pause of {seconds:.0f} "
            f"s, more than {LONGEST_PAUSE_SECONDS:.0f} s: try again after it{_or_with_token(response.status_code)}; "
            "what has come is kept"
        )
    return seconds and seconds + 1  # both are in whole seconds


def _or_with_token(status: int) -> str:
    return ", or set HF_TOKEN, as accounts have a higher rate limit" if status == 429 else ""


def _retry_after(headers: Mapping[str, str]) -> float:
    """The header ``Retry-After``, in seconds: a number of them or a date (RFC 9110); 0 if it is missing or neither."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = _parse_date(value)
    except ValueError:
        return 0.0
    try:
        now = _parse_date(headers.get("Date", ""))  # by the clock that the date is of
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
