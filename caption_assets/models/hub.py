"""Models on the Hub: what a pinned revision consists of, and its files, checked against what the Hub says of them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from caption_assets.models.progress import Progress
from caption_assets.models.variants import Variant
from caption_assets.models.weights import WeightsError, belongs, check_space, file_hash

TALKATIVE = ("huggingface_hub.file_download", "huggingface_hub.utils._http", "httpx2", "httpcore2.http11")
"""Loggers that repeat the addresses they ask, which may be signed."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file, as the Hub describes it."""

    path: str
    """Relative to the model's folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str | None
    """Of its content; known of large files."""
    git_hash: str
    """Of its content as git has it (SHA-1 with a header), where ``sha256`` is not known."""

    def is_whole(self, file: Path) -> bool:
        """Whether a local file is this one, by its hash."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        return file_hash(file) == self.sha256 if self.sha256 else _git_hash(file) == self.git_hash


def fetch(variant: Variant, folder: Path, tell: Callable[[str], None], only: Collection[str] | None = None) -> None:
    """Bring the files of a model into ``folder``. Those that an earlier try has brought stay.

    Where a connection breaks within a file, the client goes on from there; of a file that a try did not end it keeps
    nothing.

    Args:
        variant: the model; its revision is a commit.
        folder: for the files; the Hub's client keeps notes in it as well.
        tell: told of the progress.
        only: paths of the files that are wanted; None for all that belong to a model.

    Raises:
        WeightsError: if the Hub or the revision cannot be had, a file is not what the Hub says, or the disk is full.
    """
    with _clear_errors(variant), _without_signatures():
        files = [file for file in _list_files(variant) if only is None or file.path in only]
        missing = [file for file in files if not file.is_whole(folder / file.path)]
        size = sum(file.size for file in missing)
        folder.mkdir(parents=True, exist_ok=True)
        for half in folder.rglob("*.incomplete"):  # of a try that was killed; the client would not use it
            half.unlink()
        check_space(folder, size, variant.hub_id, "CAPTION_CACHE")
        progress = Progress(f"{variant.hub_id} from the Hub", size, tell)
        for file in missing:
            _download(variant, file, folder, progress)


def _list_files(variant: Variant) -> Sequence[HubFile]:
    info = HfApi().model_info(variant.hub_id, revision=variant.revision, files_metadata=True)
    if info.sha != variant.revision:
        raise WeightsError(
            f"revision {variant.revision!r} of {variant.hub_id} is a name that may move, now for {info.sha}: pin that "
            f"commit with CAPTION_MODEL_REVISION={info.sha}"
        )
    return [
        HubFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None, one.blob_id or "")
        for one in info.siblings or []
        if belongs(one.rfilename)
    ]


def _download(variant: Variant, file: HubFile, folder: Path, progress: Progress) -> None:
    """Fetch a file; a second time from its beginning if it is not what the Hub says."""
    for again in (False, True):
        path = Path(
            HfApi().hf_hub_download(
                variant.hub_id,
                file.path,
                revision=variant.revision,
                local_dir=folder,
                force_download=again,
                tqdm_class=_bar(progress),
            )
        )
        if file.is_whole(path):
            return
        path.unlink()  # it must not be taken for the file by a later try
        progress.add(-file.size)
    raise WeightsError(
        f"{file.path} of {variant.hub_id} arrived twice with other bytes than the Hub says ({file.size} bytes, "
        f"{file.sha256 or file.git_hash}): something between here and the Hub changes it; try again, or from elsewhere"
    )


def _bar(progress: Progress) -> type[tqdm]:
    """A progress bar that shows nothing and counts."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            progress.add(int(n or 0))

    return Bar


def _git_hash(file: Path) -> str:
    """SHA-1 of the content as a git object: ``blob``, its length, a zero byte, and the bytes."""
    return hashlib.sha1(b"blob %d\0" % file.stat().st_size + file.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def _clear_errors(variant: Variant) -> Iterator[None]:
    """Say what is wrong without the client's words, which repeat addresses that may be signed."""
    model, revision, hub = variant.hub_id, variant.revision, urlsplit(constants.ENDPOINT).netloc
    try:
        yield
    except WeightsError:
        raise
    except GatedRepoError:
        reason = f"{model} is given only to those who asked for it: ask on its page, and set HF_TOKEN of that account"
    except RevisionNotFoundError:
        reason = f"{model} has no revision {revision!r}: name a commit of it"
    except RemoteEntryNotFoundError:
        reason = f"{hub} lists a file of {model} that it does not have: try again later, or name another revision"
    except RepositoryNotFoundError:
        reason = (
            f"{hub} knows no {model}, or not for you: correct the name, or set HF_TOKEN of an account that may read it"
        )
    except OfflineModeIsEnabled:
        reason = f"{model} is not yet in the mirror, and offline mode keeps it so: unset HF_HUB_OFFLINE"
    except LocalEntryNotFoundError:
        reason = f"{hub} cannot be reached for {model}: check the network and HF_ENDPOINT, and try again"
    except HfHubHTTPError as error:
        reason = f"{hub} answered {error.response.status_code} when asked for {model}: try again later"
    except Exception as error:  # of the client's HTTP library, or of the disk
        full = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        reason = (
            f"{model} could not be fetched from {hub} ({type(error).__name__}{full}): check the network and the disk "
            "of CAPTION_CACHE, and try again; what has arrived is kept"
        )
    else:
        return
    raise WeightsError(reason) from None


class _Unsigned(logging.Filter):
    """Takes the queries out of addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"\?[^\s\"']+", "?…", record.getMessage()), ()
        return True


@contextmanager
def _without_signatures() -> Iterator[None]:
    unsigned = _Unsigned()
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    for logger in loggers:
        logger.addFilter(unsigned)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(unsigned)
