"""The Hugging Face Hub as the place of a model, at one commit."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not re-exported by name
from huggingface_hub.utils.tqdm import silent_tqdm

from caption_assets.models.weights import ListedFile, WeightsError, belongs

T = TypeVar("T")
LIBRARY = "caption-assets"
PAUSES_SECONDS = (1.0, 4.0, 16.0)
"""Before each further try where the Hub fails: HTTP 429 and 5xx, no connection."""
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\")]*")
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
    """A model on the Hub that ``HF_ENDPOINT`` names, read with ``HF_TOKEN`` if there is one."""

    hub_id: str
    revision: str
    """The commit, in full."""
    remedy: str = "look for what lies between this machine and the Hub (a proxy, HF_ENDPOINT), and try again"
    pinned: bool = True

    @property
    def address(self) -> str:
        """The page of that commit."""
        return f"{_page(self.hub_id)}/tree/{self.revision}"

    def files(self) -> list[ListedFile]:
        """The model's files, with the hashes that the Hub has of them.

        Raises:
            WeightsError: if the Hub does not tell, or the revision is no commit.
        """
        with self._clear_errors(self.hub_id):
            api = HfApi(endpoint=constants.ENDPOINT, library_name=LIBRARY)
            found = _again(
                lambda: api.model_info(
                    self.hub_id, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                )
            )
        if found.sha != self.revision:
            raise WeightsError(
                f"{self.revision!r} is no whole commit of {self.hub_id}, but a name for one, which may change: set "
                f"CAPTION_MODEL_REVISION={found.sha} for what it is now"
            )
        listed = [_listed(file) for file in found.siblings or () if belongs(file.rfilename)]
        return sorted(listed, key=lambda file: file.path)

    def copy(self, file: ListedFile, target: io.BufferedWriter) -> None:
        """Write a file's bytes to ``target``, from the position on at which it stands.

        Raises:
            WeightsError: if the Hub does not send them.
        """
        with self._clear_errors(f"{self.hub_id}/{file.path}"):
            _again(lambda: self._continue(file, target))

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
                f"{_page(self.hub_id)}/commits/main; set CAPTION_MODEL_REVISION to one of them"
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
            "again later; what has come is kept"
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


def _again(call: Callable[[], T]) -> T:
    for pause in PAUSES_SECONDS:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code != 429 and error.response.status_code < 500:
                raise
        except httpx2.TransportError:
            pass
        time.sleep(pause)
    return call()
