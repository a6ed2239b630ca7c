"""People's corrections of captions: decisions on a window and stage, which outrank the model.

They lie in ``corrections/shard=<shard>/``, one Parquet file a decision, so that concurrent reviewers never write the
same object. The export merges the files that it has read; the other files are those that it has not exported yet.
Nothing is ever changed in place, and no file is removed before another one contains all of its rows.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated
from uuid import uuid4

import pyarrow as pa

from caption_assets.errors import CaptionAssetsError
from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableError, TableFile, row_schema, with_file_metadata, write_table
from caption_assets.store.tables import SHARD, CaptionRow

CORRECTIONS = "corrections"
"""Folder of all corrections, relative to the root."""
PARALLEL_REQUESTS = 16
"""Number of files read or removed concurrently. Each takes tens of milliseconds in object storage, mostly waiting."""
_COMPACTED = "compacted-"
_SAVED = "saved-"
_SUFFIX = ".parquet"
_TIME = "%Y%m%dT%H%M%S%f"
"""Format of the time in the name of a decision's file."""


class CorrectionError(CaptionAssetsError):
    """A decision that contradicts itself."""


class Decision(StrEnum):
    """What a person decided on a caption."""

    ACCEPT = "accept"
    REJECT = "reject"
    REWRITE = "rewrite"
    UNDO = "undo"
    """Withdraws an earlier decision, so that the one before it holds again."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A decision on the caption of a window and stage.

    Raises:
        CorrectionError: if a rewrite has no text, another decision has one, or only one of ``UNDO`` and ``undoes`` is
            given.
    """

    correction_id: str
    """32 hex digits, unique."""
    clip_key: str
    """As in the manifest."""
    window_index: int
    """As in the manifest."""
    window_id: str
    """As in the manifest."""
    start_seconds: float
    """As in the manifest."""
    end_seconds: float
    """As in the manifest."""
    stage: str
    """Name of the stage."""
    decision: Decision
    reviewer: str
    """Name of the person."""
    decided_at: Annotated[datetime, pa.timestamp("us", tz="UTC")]
    """Time of the decision."""
    reviewed_caption: str | None
    """The model's text that the decision is about; None if the model gave none."""
    fingerprint: str | None
    """Fingerprint of the row with that text."""
    caption: str | None = None
    """The new text of a rewrite; None for other decisions."""
    reason: str | None = None
    """Reason of a rejection, if the person gave one."""
    undoes: str | None = None
    """Id of the correction that an ``UNDO`` withdraws."""

    def __post_init__(self) -> None:
        if (self.decision is Decision.REWRITE) != bool(self.caption and self.caption.strip()):
            raise CorrectionError(
                f"the decision {self.decision.value!r} has the text {self.caption!r}: give a text to a rewrite, and to "
                "no other decision"
            )
        if (self.decision is Decision.UNDO) != (self.undoes is not None):
            raise CorrectionError(
                f"the decision {self.decision.value!r} undoes {self.undoes!r}: only an undo names another"
            )

    @classmethod
    def of(
        cls,
        row: CaptionRow,
        stage: str,
        decision: Decision,
        reviewer: str,
        *,
        caption: str | None = None,
        reason: str | None = None,
        undoes: str | None = None,
    ) -> Correction:
        """A decision made now, on a row as it is stored.

        Args:
            row: the row.
            stage: name of its stage.
            decision: the decision.
            reviewer: name of the person.
            caption: the new text, for a rewrite.
            reason: the reason, for a rejection.
            undoes: id of the correction to withdraw, for an undo.

        Raises:
            CorrectionError: see the class; also if the row is no window, because its clip is unreadable.
        """
        if row.window_index is None or row.start_seconds is None or row.end_seconds is None:
            raise CorrectionError(
                f"{row.clip_key!r} has no window, because the clip is unreadable: correct another row"
            )
        return cls(
            correction_id=uuid4().hex,
            clip_key=row.clip_key,
            window_index=row.window_index,
            window_id=row.window_id,
            start_seconds=row.start_seconds,
            end_seconds=row.end_seconds,
            stage=stage,
            decision=decision,
            reviewer=reviewer,
            decided_at=datetime.now(UTC),
            reviewed_caption=row.caption,
            fingerprint=row.fingerprint,
            caption=caption,
            reason=reason,
            undoes=undoes,
        )

    @property
    def target(self) -> tuple[str, float | None, float | None, str]:
        """What it is about: the window, its time range in seconds, and the stage."""
        return self.window_id, self.start_seconds, self.end_seconds, self.stage

    def is_outdated(self, row: CaptionRow) -> bool:
        """Whether the model's text has changed since the decision."""
        return self.reviewed_caption != row.caption


CORRECTION_SCHEMA = row_schema(Correction)
"""The columns of a correction."""
PUBLISHED_SCHEMA = pa.schema([SHARD, *CORRECTION_SCHEMA])
"""The columns of a file of corrections."""


class Corrections:
    """The corrections of a shard. Of several on one caption the latest holds that is not withdrawn.

    Args:
        history: all corrections, in any order.
    """

    def __init__(self, history: Iterable[Correction]) -> None:
        unique = {one.correction_id: one for one in history}
        self.history: Sequence[Correction] = sorted(
            unique.values(), key=lambda one: (one.decided_at, one.correction_id)
        )
        """All corrections, the oldest first."""
        withdrawn = {one.undoes for one in self.history}
        self._present = {
            one.target: one
            for one in self.history
            if one.decision is not Decision.UNDO and one.correction_id not in withdrawn
        }

    @property
    def present(self) -> Sequence[Correction]:
        """The corrections that hold, one for each corrected caption."""
        return list(self._present.values())

    def find(self, row: CaptionRow, stage: str) -> Correction | None:
        """The correction of a row's caption that holds, if there is one."""
        return self._present.get((row.window_id, row.start_seconds, row.end_seconds, stage))


@dataclass(frozen=True, slots=True)
class CorrectionCounts:
    """The number of a shard's corrections that hold, by kind."""

    accepted: int = 0
    rejected: int = 0
    rewritten: int = 0
    outdated: int = 0
    """Number of those that were made on another text of the model than the present one."""
    unmatched: int = 0
    """Number of those without a row: the clip has changed, or its windows, or the stage is not in the recipe."""

    @classmethod
    def of(cls, corrections: Corrections, rows: Iterable[tuple[str, CaptionRow]]) -> CorrectionCounts:
        """Count corrections.

        Args:
            corrections: the corrections of a shard.
            rows: the shard's rows, each after the name of its stage.
        """
        decisions = Counter(one.decision for one in corrections.present)
        matched = outdated = 0
        for stage, row in rows if decisions else ():
            if found := corrections.find(row, stage):
                matched += 1
                outdated += found.is_outdated(row)
        return cls(
            decisions[Decision.ACCEPT],
            decisions[Decision.REJECT],
            decisions[Decision.REWRITE],
            outdated,
            len(corrections.present) - matched,
        )


@dataclass(frozen=True, slots=True)
class CorrectionFiles:
    """The files of corrections that a shard had at one time."""

    shard: str
    files: Mapping[str, Sequence[Correction]]
    """The corrections in each file, by its path."""

    @property
    def corrections(self) -> Corrections:
        """The corrections in all files."""
        return Corrections(one for rows in self.files.values() for one in rows)


def corrections_folder(shard: str) -> str:
    """The folder of a shard's corrections, relative to the root."""
    return f"{CORRECTIONS}/shard={shard}"


def save_correction(root: Root, shard: str, correction: Correction) -> None:
    """Store a correction as an object of its own.

    Raises:
        StoreError: if it cannot be written.
    """
    _write(root, shard, f"{correction.decided_at.astimezone(UTC):{_TIME}}-{correction.correction_id}", [correction])


def save_corrections(root: Root, shard: str, corrections: Sequence[Correction]) -> None:
    """Store several corrections as one object, for an import. Storing the same ones twice has no effect.

    Raises:
        StoreError: if it cannot be written.
    """
    if corrections:
        _write(root, shard, _SAVED + _content_id(corrections), corrections)


def read_corrections(root: Root, shard: str) -> Corrections:
    """All corrections of a shard.

    Raises:
        TableError: if a file is damaged.
        StoreError: if the root cannot be read.
    """
    return read_correction_files(root, shard).corrections


class CorrectionLog:
    """A shard's corrections as reviewers add them. Files never change, so each is read once.

    Args:
        root: the root.
        shard: the shard's key.
    """

    def __init__(self, root: Root, shard: str) -> None:
        self._root = root
        self._shard = shard
        self._files: dict[str, Sequence[Correction]] = {}

    def read(self) -> Corrections:
        """All corrections: those of new files, and those that were read before.

        Raises:
            TableError: if a file is damaged.
            StoreError: if the root cannot be read.
        """
        self._files.update(read_correction_files(self._root, self._shard, self._files).files)
        return CorrectionFiles(self._shard, self._files).corrections


def read_correction_files(root: Root, shard: str, known: Container[str] = ()) -> CorrectionFiles:
    """All corrections of a shard, with their files.

    A file that a concurrent compaction removes is in its merged file.

    Args:
        root: the root.
        shard: the shard's key.
        known: paths of files to leave out.

    Raises:
        TableError: if a file is damaged.
        StoreError: if the root cannot be read.
    """
    folder = corrections_folder(shard)
    while True:
        names = (name for name in root.files(folder) if name.endswith(_SUFFIX))
        paths = [path for name in names if (path := f"{folder}/{name}") not in known]
        try:
            with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
                rows = pool.map(lambda path: list(_read(root, path)), paths)
                return CorrectionFiles(shard, dict(zip(paths, rows, strict=True)))
        except FileNotFoundError:
            continue


def compact_corrections(root: Root, found: CorrectionFiles) -> bool:
    """Merge files of corrections into one, which marks them as exported.

    It is safe beside reviewers, other compactions, and kills: the merged file is named by its content and written
    first, and then exactly the files that it contains are removed.

    Args:
        root: the root.
        found: the files, as they were read.

    Returns:
        Whether there were files to merge.

    Raises:
        StoreError: if the root cannot be written.
    """
    if not _is_pending(found.files):
        return False
    merged = found.corrections.history
    name = _COMPACTED + _content_id(merged)
    path = _write(root, found.shard, name, merged)
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        list(pool.map(root.remove, (other for other in found.files if other != path)))
    return True


@dataclass(frozen=True, slots=True)
class PendingCorrections:
    """The files of a shard with corrections that no export has read yet."""

    version: str
    """Hash of the names of the shard's files."""
    latest: datetime | None
    """Time of the latest decision that was saved alone; None if there is none, as after an import."""

    @classmethod
    def of(cls, paths: Iterable[str]) -> PendingCorrections:
        """Parse the paths of a shard's files."""
        names = sorted(posixpath.basename(path) for path in paths)
        alone = [name for name in names if not name.startswith((_COMPACTED, _SAVED))]
        latest = max((_parse_time(name) for name in alone), default=None)
        return cls(sha256("\n".join(names).encode()).hexdigest()[:16], latest)


def pending_corrections(root: Root) -> Mapping[str, PendingCorrections]:
    """The corrections that no export has read yet, by shard, from one listing.

    Raises:
        StoreError: if the root cannot be listed.
    """
    found = defaultdict[str, list[str]](list)
    for path in root.sizes(CORRECTIONS):
        if path.endswith(_SUFFIX):
            found[posixpath.dirname(path).removeprefix(corrections_folder(""))].append(path)
    return {shard: PendingCorrections.of(paths) for shard, paths in sorted(found.items()) if _is_pending(paths)}


def _parse_time(name: str) -> datetime:
    """The time in a file's name; the beginning of time for a name that is not this project's."""
    try:
        return datetime.strptime(name.partition("-")[0], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _is_pending(paths: Collection[str]) -> bool:
    """Whether the files are others than the one that a compaction leaves."""
    names = [posixpath.basename(path) for path in paths]
    return len(names) > 1 or any(not name.startswith(_COMPACTED) for name in names)


def _content_id(corrections: Iterable[Correction]) -> str:
    ids = sorted(one.correction_id for one in corrections)
    return sha256("\n".join(ids).encode()).hexdigest()[:24]


def _write(root: Root, shard: str, name: str, corrections: Iterable[Correction]) -> str:
    """Write a file of corrections, and return its path."""
    path = f"{corrections_folder(shard)}/{name}{_SUFFIX}"
    with temporary_folder() as folder:
        file = folder / "corrections.parquet"
        records = ({SHARD.name: shard, **asdict(one)} for one in corrections)
        write_table(file, with_file_metadata(PUBLISHED_SCHEMA, {}), records)
        root.upload(path, file)
    return path


def _read(root: Root, path: str) -> Iterator[Correction]:
    remedy = "restore it from a backup, or remove it, which loses its decisions"
    with TableFile.open(root.read(path), CORRECTION_SCHEMA, name=root.address(path), remedy=remedy) as file:
        for record in file.records():
            try:
                yield Correction(**{**record, "decision": Decision(record["decision"])})
            except (CorrectionError, TypeError, KeyError, ValueError) as error:
                raise TableError(f"{file.name} has an invalid correction ({error}): {remedy}") from None
